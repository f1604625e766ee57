"""scripts/convert_max_checkpoint.py: converted MAX checkpoints give MAX's numbers; what does not fit is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from max_reference import MaxMaskedAutoencoder, MaxRegressor, instance_norm, randomize
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

SCRIPT = "convert_max_checkpoint.py"
TOLERANCE = 1e-5
# 15 patches: half of them is no whole number
SMALL = {"spectrum_length": 120, "patch_size": 8, "width": 32, "layers": 2, "heads": 4}
SMALL_DECODER = {"decoder_width": 24, "decoder_layers": 3, "decoder_heads": 2}
SMALL_HEADS = ["--num_attention_heads", "4", "--decoder_num_attention_heads", "2"]
TARGET = ["--target_name", "CaCO3", "--target_unit", "wt%", "--target_mean", "23.5", "--target_std", "26.25"]


@pytest.fixture
def convert(call_script):
    """Runs the script in this process: its exit code and what it wrote to standard error."""

    def run(*arguments):
        code, _, error = call_script(*arguments)
        return code, error

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """`refused(state_dict, *options)`: the one sentence with which the script refuses it, writing nothing."""

    def run(state_dict, *options):
        checkpoint = tmp_path / "checkpoint.pth"
        if not checkpoint.exists():
            torch.save(state_dict, checkpoint)
        before = sorted(tmp_path.rglob("*"))
        code, stderr = convert(checkpoint, "--output_dir", tmp_path / "out", *options)
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert code == 2, stderr
        assert len(errors) == 1 and stderr.strip() == errors[0], stderr
        assert sorted(tmp_path.rglob("*")) == before
        return errors[0]

    return run


def small_autoencoder(seed=0):
    return randomize(MaxMaskedAutoencoder(**SMALL, **SMALL_DECODER), seed, scale=0.2)


def small_regressor(seed=0, scale=0.2):
    return randomize(MaxRegressor(23.5, 26.25, **SMALL), seed, scale=scale)


def max_error(actual, expected):
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


@pytest.mark.parametrize("size", ["small", "base"])
@torch.no_grad()
def test_pretraining_checkpoint_gives_max_numbers(size, convert, tmp_path):
    if size == "small":
        reference, options, batch_size = small_autoencoder(), SMALL_HEADS, 5
    else:
        reference, options, batch_size = randomize(MaxMaskedAutoencoder(), 1), [], 2
    torch.save(reference.state_dict(), tmp_path / "max.pth")
    assert convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *options)[0] == 0
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in reference.parameters() if p.requires_grad
    )

    generator = torch.Generator().manual_seed(2)
    values = torch.randn(batch_size, model.config.spectrum_length, generator=generator)
    for mask_ratio in (0.5, 0.75):
        noise = torch.rand(batch_size, model.config.num_patches, generator=generator)
        latent, reconstruction, mask, loss = reference(values, noise, mask_ratio)
        model.config.mask_ratio = mask_ratio
        output = model(values, noise=noise)
        visible = output.ids_restore.argsort(dim=1)[:, : latent.shape[1] - 1]

        assert torch.equal(output.mask, mask)
        assert max_error(model.xrf(values, patch_ids=visible).last_hidden_state, latent) < TOLERANCE
        assert max_error(output.reconstruction.view(reconstruction.shape), reconstruction) < TOLERANCE
        assert abs(output.loss - loss) < TOLERANCE
        assert loss > 0.1 and latent.std() > 0.1 and reconstruction.std() > 0.1  # nothing agrees by being zero
    encoder = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert max_error(encoder(values).last_hidden_state, reference.encode(values)) < TOLERANCE


@pytest.mark.parametrize("size", ["small", "base"])
@torch.no_grad()
def test_regression_checkpoint_gives_max_predictions(size, convert, tmp_path):
    if size == "small":
        reference, options, batch_size = small_regressor(), SMALL_HEADS, 40
    else:
        reference, options, batch_size = randomize(MaxRegressor(23.5, 26.25), 3), [], 4
    torch.save(reference.state_dict(), tmp_path / "max.pth")
    assert convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *options, *TARGET)[0] == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()

    assert model.config.target_names == ["CaCO3"] and model.config.target_units == ["wt%"]
    assert (model.config.target_mean, model.config.target_std) == ([23.5], [26.25])
    assert (model.config.target_min, model.config.target_max, model.config.pooling) == ([0.0], [100.0], "cls")
    values = torch.randn(batch_size, model.config.spectrum_length, generator=torch.Generator().manual_seed(4))
    expected = reference(values)
    # 1e-5 of the standardised target, so of target_std in wt%
    assert max_error(model(values).predictions, expected) < TOLERANCE * 26.25
    assert expected.std() > 1 and expected.min() > 0 and expected.max() < 100


@pytest.mark.parametrize("bias, bound", [(50.0, 100.0), (-50.0, 0.0)])
@torch.no_grad()
def test_regressor_is_clamped_as_in_max(bias, bound, convert, tmp_path):
    reference = small_regressor()
    reference.fc.bias.fill_(bias)
    torch.save(reference.state_dict(), tmp_path / "max.pth")
    assert convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *SMALL_HEADS, *TARGET)[0] == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    values = torch.randn(3, 120, generator=torch.Generator().manual_seed(5))
    assert torch.equal(reference(values), torch.full((3, 1), bound))
    assert torch.equal(model(values).predictions, torch.full((3, 1), bound))


@torch.no_grad()
def test_counts_to_weight_percent_as_in_max(convert, tmp_path):
    """The saved feature extractor standardises like MAX, above the tube voltage too."""
    sizes = {**SMALL, "spectrum_length": 2048, "patch_size": 16}
    reference = randomize(MaxRegressor(23.5, 26.25, **sizes), 6, scale=0.1)
    torch.save(reference.state_dict(), tmp_path / "max.pth")
    assert convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *SMALL_HEADS, *TARGET)[0] == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    feature_extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert feature_extractor.scaling == "standardize" and not feature_extractor.limit_to_tube_kv

    energy_kev = 0.02 * np.arange(2048)
    rate = 20 * np.exp(-energy_kev / 5) + 3000 * np.exp(-0.5 * ((energy_kev - 3.69) / 0.06) ** 2)
    counts = np.random.default_rng(7).poisson(rate, size=(3, 2048))
    inputs = feature_extractor(counts, gain_kev=0.02, offset_kev=0.0, tube_kv=10.0, return_tensors="pt")
    normalised = instance_norm(torch.from_numpy(counts))

    assert inputs["attention_mask"].all()
    assert max_error(inputs["input_values"], normalised) < 1e-5
    expected = reference(normalised)
    assert ((expected > 0) & (expected < 100)).any()
    assert max_error(model(**inputs).predictions, expected) < TOLERANCE * 26.25


def test_every_unknown_missing_and_misshapen_key_is_named(refused):
    state_dict = small_autoencoder().state_dict()
    del state_dict["blocks.1.attn.qkv.bias"], state_dict["cls_token"]
    state_dict["ema.decay"] = torch.ones(1)
    state_dict["head.weight"] = torch.ones(3, 3)
    state_dict["decoder_pred.bias"] = torch.zeros(9)
    state_dict["blocks.0.attn.qkv.weight"] = torch.zeros(95, 32)
    message = refused(state_dict, *SMALL_HEADS)
    assert "missing cls_token, blocks.1.attn.qkv.bias" in message
    assert "unknown ema.decay, head.weight" in message
    assert "decoder_pred.bias (9,) instead of (8,)" in message
    assert "blocks.0.attn.qkv.weight (95, 32) instead of (96, 32)" in message
    assert "norm1" not in message  # and no innocent one


def test_one_key_that_decides_a_size_can_be_missing_or_wrong(refused, tmp_path):
    for name in small_regressor().state_dict():
        state_dict = small_regressor().state_dict()
        shape = tuple(state_dict[name].shape)
        state_dict[name] = torch.zeros(7, 5, 3, 2)
        message = refused(state_dict, *SMALL_HEADS, *TARGET)
        assert f"misshapen {name} (7, 5, 3, 2)" in message and message.count(" instead of ") == 1, (name, shape)
        (tmp_path / "checkpoint.pth").unlink()
        if not name.startswith("fc"):
            del state_dict[name]
            assert f"(missing {name});" in refused(state_dict, *SMALL_HEADS, *TARGET)
            (tmp_path / "checkpoint.pth").unlink()


def test_a_layer_without_its_neighbours_is_named(refused):
    state_dict = small_regressor().state_dict()
    state_dict["blocks.99999999999.norm1.weight"] = torch.ones(32)
    assert "unknown blocks.99999999999.norm1.weight" in refused(state_dict, *SMALL_HEADS, *TARGET)


def test_another_architecture_is_refused(refused):
    message = refused(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).state_dict())
    assert "unknown 0.weight, 0.bias, 1.weight, 1.bias" in message and "missing cls_token, pos_embed" in message


def test_code_in_a_checkpoint_is_refused_and_not_run(refused, tmp_path):
    trace = tmp_path / "code_ran"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (trace,)

    for content in (pickle.dumps(Malicious(), protocol=2), None):
        checkpoint = tmp_path / "checkpoint.pth"
        if content is None:
            torch.save({"weight": torch.ones(2), "extra": Malicious()}, checkpoint)
        else:
            checkpoint.write_bytes(content)
        assert "does not hold tensors alone" in refused(None)
        assert not trace.exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": {"weight": torch.ones(2)}, "epoch": 3}, torch.ones(3)])
def test_only_a_bare_state_dict_is_taken(content, refused):
    assert "must hold a bare state dict" in refused(content)


@pytest.mark.parametrize("kept_bytes", [0, 100, -2000])
def test_a_truncated_file_is_refused(kept_bytes, refused, tmp_path):
    torch.save(small_regressor().state_dict(), tmp_path / "checkpoint.pth")
    content = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(content[:kept_bytes])
    assert str(tmp_path / "checkpoint.pth") in refused(None, *TARGET)


@pytest.mark.parametrize("name", ["pos_embed", "decoder_pos_embed"])
def test_learned_positions_are_refused(name, refused):
    state_dict = small_autoencoder().state_dict()
    state_dict[name] = state_dict[name].clone()
    state_dict[name][0, 3, 5] += 0.01
    assert f"{name} of" in (message := refused(state_dict, *SMALL_HEADS)) and "0.01" in message


def test_options_that_do_not_fit_the_checkpoint_are_refused(refused, tmp_path):
    message = refused(small_regressor().state_dict(), *SMALL_HEADS, "--target_name", "CaCO3", "--target_mean", "3")
    assert "is a regressor" in message and "--target_std" in message
    assert "hidden_size (32) must be even" in refused(None, "--num_attention_heads", "12", *TARGET)
    (tmp_path / "checkpoint.pth").unlink()
    odd = MaxRegressor(23.5, 26.25, **{**SMALL, "width": 33, "heads": 3}).state_dict()
    assert "hidden_size (33) must be even" in refused(odd, "--num_attention_heads", "3", *TARGET)
    (tmp_path / "checkpoint.pth").unlink()
    torch.save(small_regressor().state_dict(), tmp_path / "checkpoint.pth")
    assert "num_attention_heads must be at least 1" in refused(None, "--num_attention_heads", "0", *TARGET)
    assert "target_std of CaCO3 must be positive" in refused(None, *SMALL_HEADS, *TARGET[:-1], "0")
    (tmp_path / "checkpoint.pth").unlink()
    assert "leave out the --target options" in refused(small_autoencoder().state_dict(), *SMALL_HEADS, *TARGET)


def test_a_missing_checkpoint_is_named(convert, tmp_path):
    code, stderr = convert(tmp_path / "absent.pth", "--output_dir", tmp_path / "out")
    assert code == 2 and stderr == f"error: No such file or directory: {tmp_path / 'absent.pth'}\n"


def test_other_files_in_the_output_folder_stay(convert, tmp_path):
    torch.save(small_regressor().state_dict(), tmp_path / "max.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, stderr = convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *SMALL_HEADS, *TARGET)
    assert code == 2 and "is not empty" in stderr
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("thesis.txt", "mine")]


def test_command_writes_a_repository_with_its_card(run_script, tmp_path):
    torch.save(small_regressor().state_dict(), tmp_path / "max.pth")
    run_script(
        "convert_max_checkpoint.py", tmp_path / "max.pth", "--output_dir", tmp_path / "out", *SMALL_HEADS, *TARGET
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "configuration_xrf.py",
        "modeling_xrf.py", "feature_extraction_xrf.py", "pipeline_xrf.py",
    }  # fmt: skip
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "tabular-regression"
    assert card.data.license == "mit"
    assert card.data.tags == ["xrf", "x-ray-fluorescence", "geochemistry", "masked-autoencoder"]
    assert "CaCO3 in wt%, kept within 0 to 100; labels of mean 23.5 and standard deviation 26.25" in card.text
    assert "2410.12330" in card.text and "max.pth" in card.text and "## Beware" in card.text


def test_card_of_a_pretrained_model(convert, tmp_path):
    torch.save(small_autoencoder().state_dict(), tmp_path / "max.pth")
    convert(tmp_path / "max.pth", "--output_dir", tmp_path / "out", *SMALL_HEADS)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert "| encoder | 32 wide, 2 layers, 4 heads |\n| decoder | 24 wide, 3 layers, 2 heads |" in card.text
