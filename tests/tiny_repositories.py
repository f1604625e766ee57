"""Repositories small enough for tests: a pretrained model, an adapter and a corpus, written as the scripts do."""

import itertools
import json

import numpy as np
import torch

from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_adapter_repository, save_repository
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression

SIZES = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32,
}  # fmt: skip
TASK = {
    "target_names": ["CaCO3", "TOC"], "target_units": ["wt%", "wt%"], "target_mean": [40.0, 50.0],
    "target_std": [20.0, 10.0], "target_min": [0.0, 0.0], "target_max": [100.0, 100.0],
}  # fmt: skip


def card_text(pipeline_tag="feature-extraction", **metadata):
    metadata = {"library_name": "transformers", "pipeline_tag": pipeline_tag, "tags": ["xrf"], **metadata}
    return f"---\n{json.dumps(metadata)}\n---\n\n# Test\n"


def pretrained_model(seed=0):
    torch.manual_seed(seed)
    return XRFForMaskedSpectrumModeling(XRFMaskedConfig(**SIZES))


def perturbed(model, seed=1):
    """A model as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def lora_of(base, seed=1):
    """A LoRA adapter to a repository, a folder or a Hub id."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = XRFForRegression.from_pretrained(base, **TASK)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["head"])
    return perturbed(get_peft_model(model, lora), seed)


def save_base(folder, seed=0):
    model = pretrained_model(seed)
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), card_text())


def save_adapter(folder, base, seed=1):
    card = card_text("tabular-regression", library_name="peft", base_model=str(base))
    model = lora_of(base, seed)
    save_adapter_repository(folder, model, XRFFeatureExtractor.for_config(model.config), card)
    return model


def save_corpus(folder, sizes):
    """A folder as the corpus builder writes it; the sample names count through."""
    from pyarrow import parquet

    from dataset_builder.features import spectra_to_table
    from dataset_builder.spectrum import Spectrum

    (folder / "data").mkdir(parents=True)
    numbers = itertools.count()
    for name, size in sizes.items():
        spectra = [
            Spectrum(
                counts=np.arange(8.0 + number), gain_kev=0.02, offset_kev=0.1, sample=f"s{number}",
                targets={"CaCO3": number / 2}, target_units={"CaCO3": "wt%"},
            )
            for number in itertools.islice(numbers, size)
        ]  # fmt: skip
        table = spectra_to_table(spectra, ["CaCO3"], {"CaCO3": "wt%"})
        parquet.write_table(table, folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("---\ntags: [xrf]\nlicense: cc-by-4.0\n---\n# Spectra\n")
    return folder
