"""`benchmarks/throughput.py`, and that the classic form it compares with computes what the library computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configuration_xrf import XRFMaskedConfig
from modeling_xrf import XRFForMaskedSpectrumModeling
from training_xrf import encoder_flops, training_flops

BENCHMARK = "throughput"
SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def throughput(benchmark):
    return benchmark


@pytest.mark.parametrize("mask_ratio", [0.5, 0.8])
def test_classic_form_has_the_same_loss_and_gradients(throughput, mask_ratio):
    from classic import ClassicAutoencoder, copy_weights

    torch.manual_seed(0)
    model = XRFForMaskedSpectrumModeling(XRFMaskedConfig(**SMALL, mask_ratio=mask_ratio))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    classic = ClassicAutoencoder(model.config)
    copy_weights(model, classic)
    assert sum(p.numel() for p in classic.parameters()) == model.num_parameters()
    values, noise = torch.randn(3, 128), torch.rand(3, 8)
    loss, classic_loss = model(values, noise=noise).loss, classic(values, noise)
    torch.testing.assert_close(classic_loss, loss)
    loss.backward()
    classic_loss.backward()
    squared = [sum(p.grad.square().sum() for p in module.parameters()) for module in (model, classic)]
    torch.testing.assert_close(*squared)
    layer, block = model.decoder.layers[0], classic.decoder_blocks[0]
    torch.testing.assert_close(block.attn.qkv.weight.grad[:16], layer.attention.q_proj.weight.grad)
    torch.testing.assert_close(
        classic.patch_embed.weight.grad[:, 0], model.xrf.embeddings.patch_embeddings.weight.grad, rtol=1e-4, atol=1e-6
    )


def test_spectrum_files_are_read_and_standardised(throughput, tmp_path):
    from classic import SpectrumFiles

    for number in range(3):
        np.savetxt(tmp_path / f"{number}.csv", [number, 1, 2, 6], fmt="%d")
    files = SpectrumFiles(tmp_path)
    assert len(files) == 3
    torch.testing.assert_close(files[2], torch.tensor([-0.75, -1.75, -0.75, 3.25]) / np.std([2, 1, 2, 6], ddof=1))


def test_lines_are_those_asked_for(throughput):
    found = list(throughput.cases(("step", "attention", "run"), ("tiny", "small"), ("fp32",), ("library",), 3))
    assert [(case.part, case.size, case.spectra) for case in found] == [
        ("step", "tiny", "whole"), ("step", "small", "whole"), ("attention", "tiny", "whole"),
        ("attention", "small", "whole"), ("run", "tiny", "whole"), ("run", "tiny", "10 kV"),
    ]  # fmt: skip
    assert {case.batch_size for case in found} == {3} and {case.precision for case in found} == {"fp32"}
    assert [case.attention for case in found] == ["sdpa"] * 2 + ["eager"] * 2 + ["sdpa"] * 2


def test_a_line_is_measured_and_holds_the_arithmetic(throughput, tmp_path):
    config = XRFMaskedConfig.from_size("tiny")
    case = throughput.Case("measured", "library", "tiny", "fp32", "sdpa", 2, spectra="10 kV")
    row = throughput.measure_steps(case, None, seconds=0)
    assert row["patches"] == 32 and row["blocks"] == 3  # 10 keV of 0.32 keV a patch
    assert row["gflop_per_spectrum"] == pytest.approx(training_flops(config, 32) / 1e9, rel=1e-4)
    whole = throughput.measure_steps(replace(case, part="step", form="classic", spectra="whole"), None, seconds=0)
    assert whole["patches"] == 128 and whole["spectra_per_s"] > 0
    encoder = throughput.measure_steps(replace(case, part="encoder", spectra="whole"), None, seconds=0)
    assert encoder["gflop_per_spectrum"] == pytest.approx(encoder_flops(config, 128) / 1e9, rel=1e-4)
    for line in (row, whole, encoder):
        share = line["spectra_per_s"] * line["gflop_per_spectrum"] / line["peak_gflop_per_s"]
        assert float(line["share"]) == pytest.approx(share, rel=0.05)


def test_table_holds_ratios_to_step_and_classic_form_of_the_last_commit(throughput, tmp_path):
    path = tmp_path / "results.csv"
    row = dict.fromkeys(throughput.COLUMNS, "x") | {"size": "tiny", "precision": "bf16", "batch_size": 64}
    lines = [
        ("old", "step", "classic", "whole", 1.0),
        ("new", "step", "classic", "whole", 100.0),
        ("new", "step", "library", "whole", 120.0),
        ("new", "measured", "library", "10 kV", 500.0),
        ("new", "loader", "classic", "10 kV", 90.0),
        ("new", "run", "library", "10 kV", 450.0),
        ("new", "encoder", "library", "whole", 700.0),
    ]
    for values in lines:
        changes = dict(zip(("commit", "part", "form", "spectra", "spectra_per_s"), values))
        throughput.append_rows(path, throughput.COLUMNS, [row | changes])
    found = []
    for line in throughput.table(path).splitlines()[2:]:
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        found.append((cells[0], cells[1], *cells[-2:]))
    assert found == [
        ("step", "classic", "", ""),
        ("step", "library", "", "1.20"),
        ("measured", "library", "", "5.00"),
        ("loader", "classic", "0.90", ""),
        ("run", "library", "0.90", "5.00"),
        ("encoder", "library", "", ""),
    ]
