"""Turn a checkpoint of MAX (arXiv 2410.12330) into a repository of this library.

The pretrained model:

    python scripts/convert_max_checkpoint.py pretrained.pth --output_dir runs/max-base

A regressor, with the mean and standard deviation of the labels it was trained on:

    python scripts/convert_max_checkpoint.py caco3.pth --output_dir runs/max-caco3 \
        --target_name CaCO3 --target_unit wt% --target_mean 23.7 --target_std 26.1

A MAX checkpoint is a bare state dict. Its sizes are read from the shapes; the numbers of attention heads leave no
trace there and default to MAX's. What does not fit is named, and nothing is written.
"""

import pickle
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from command_line_xrf import HfArgumentParser, run

# MAX's names, ours, and the shape of each tensor in symbols; "3 width" is three times "width". Position tables have
# no name of ours: they are checked, not stored.
BLOCK = {
    "norm1.weight": ("layernorm_before.weight", ["width"]),
    "norm1.bias": ("layernorm_before.bias", ["width"]),
    "attn.qkv.weight": ("attention.qkv.weight", ["3 width", "width"]),
    "attn.qkv.bias": ("attention.qkv.bias", ["3 width"]),
    "attn.proj.weight": ("attention.o_proj.weight", ["width", "width"]),
    "attn.proj.bias": ("attention.o_proj.bias", ["width"]),
    "norm2.weight": ("layernorm_after.weight", ["width"]),
    "norm2.bias": ("layernorm_after.bias", ["width"]),
    "mlp.fc1.weight": ("mlp.fc1.weight", ["mlp", "width"]),
    "mlp.fc1.bias": ("mlp.fc1.bias", ["mlp"]),
    "mlp.fc2.weight": ("mlp.fc2.weight", ["width", "mlp"]),
    "mlp.fc2.bias": ("mlp.fc2.bias", ["width"]),
}
ENCODER = {
    "cls_token": ("xrf.embeddings.cls_token", [1, 1, "encoder width"]),
    "pos_embed": (None, [1, "positions", "encoder width"]),
    "patch_embed.proj.weight": ("xrf.embeddings.patch_embeddings.weight", ["encoder width", 1, "patch"]),
    "patch_embed.proj.bias": ("xrf.embeddings.patch_embeddings.bias", ["encoder width"]),
    "norm.weight": ("xrf.layernorm.weight", ["encoder width"]),
    "norm.bias": ("xrf.layernorm.bias", ["encoder width"]),
}
DECODER = {
    "mask_token": ("decoder.mask_token", [1, 1, "decoder width"]),
    "decoder_pos_embed": (None, [1, "positions", "decoder width"]),
    "decoder_embed.weight": ("decoder.embed.weight", ["decoder width", "encoder width"]),
    "decoder_embed.bias": ("decoder.embed.bias", ["decoder width"]),
    "decoder_norm.weight": ("decoder.layernorm.weight", ["decoder width"]),
    "decoder_norm.bias": ("decoder.layernorm.bias", ["decoder width"]),
    "decoder_pred.weight": ("decoder.head.weight", ["patch", "decoder width"]),
    "decoder_pred.bias": ("decoder.head.bias", ["patch"]),
}
REGRESSION_HEAD = {"fc.weight": ("head.weight", [1, "encoder width"]), "fc.bias": ("head.bias", [1])}

# Published tables were computed in single precision; an angle of 127 is then off by up to 1e-5.
POSITION_TOLERANCE = 1e-4
CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "max_conversion.md"


@dataclass
class ConversionArguments:
    output_dir: str = field(metadata={"help": "new or empty folder for the repository"})
    num_attention_heads: int = field(default=12, metadata={"help": "attention heads of the encoder"})
    decoder_num_attention_heads: int = field(default=16, metadata={"help": "attention heads of the decoder"})
    target_name: str | None = field(default=None, metadata={"help": "regressor: what it predicts, such as CaCO3"})
    target_unit: str = field(default="wt%", metadata={"help": "regressor: unit of the target"})
    target_mean: float | None = field(default=None, metadata={"help": "regressor: mean of its training labels"})
    target_std: float | None = field(default=None, metadata={"help": "regressor: standard deviation of the labels"})


def read_state_dict(path: str) -> dict:
    """Names and tensors of a checkpoint, read without running any code that the file may hold."""
    import torch

    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} does not hold tensors alone, and loading anything else could run code; save the model's bare "
            "state dict and convert that."
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is not a complete PyTorch checkpoint; download it again.") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} must hold a bare state dict, names and tensors only; save model.state_dict().")
    return state_dict


def tensor_table(state_dict: dict) -> dict[str, tuple[str | None, list]]:
    """MAX's name: (our name, shape) of every tensor that a checkpoint with these keys must hold."""
    table = dict(ENCODER)
    parts = [("blocks", "xrf", "encoder")]
    if "fc.weight" in state_dict or "fc.bias" in state_dict:
        table |= REGRESSION_HEAD
    else:
        table |= DECODER
        parts.append(("decoder_blocks", "decoder", "decoder"))
    for prefix, ours, part in parts:
        for layer in range(_num_layers(state_dict, prefix)):
            for name, (our_name, shape) in BLOCK.items():
                shape = [re.sub(r"(width|mlp)", rf"{part} \1", size) for size in shape]
                table[f"{prefix}.{layer}.{name}"] = (f"{ours}.layers.{layer}.{our_name}", shape)
    return table


def infer_sizes(state_dict: dict, table: dict) -> dict[str, int]:
    """What each symbolic size is in most of the tensors present, so that a single misshapen one stands out."""
    votes: dict[str, Counter] = {}
    for name, (_, shape) in table.items():
        if name in state_dict and state_dict[name].ndim == len(shape):
            for symbol, size in zip(shape, state_dict[name].shape):
                votes.setdefault(symbol, Counter())[size] += 1
    return {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}


def check_tensors(path: str, state_dict: dict, table: dict, sizes: dict[str, int]) -> None:
    """Raise one `ValueError` that names every tensor that is missing, unknown or of another shape than the rest."""
    problems = []
    if missing := [name for name in table if name not in state_dict]:
        problems.append(f"missing {', '.join(missing)}")
    if unknown := [str(name) for name in state_dict if name not in table]:
        problems.append(f"unknown {', '.join(unknown)}")
    misshapen = []
    for name, (_, symbols) in table.items():
        shape = tuple(_size(symbol, sizes) for symbol in symbols)
        if name in state_dict and tuple(state_dict[name].shape) != shape:
            misshapen.append(f"{name} {tuple(state_dict[name].shape)} instead of {shape}")
    if misshapen:
        problems.append(f"misshapen {', '.join(misshapen)}")
    if problems:
        kind = "regression" if "fc.weight" in table else "pretraining"
        raise ValueError(
            f"{path} is not a MAX {kind} checkpoint ({'; '.join(problems)}); convert a state dict as MAX saves it."
        )


def convert(state_dict: dict, table: dict) -> dict:
    """The tensors under our names, in single precision, with `qkv` split and the convolution as a linear map."""
    converted = {}
    for name, (our_name, _) in table.items():
        if our_name is None:
            continue
        tensor = state_dict[name].float()
        if ".qkv." in our_name:
            for letter, part in zip("qkv", tensor.chunk(3)):
                converted[our_name.replace("qkv", f"{letter}_proj")] = part.clone()
        elif name == "patch_embed.proj.weight":
            converted[our_name] = tensor.squeeze(1)
        else:
            converted[our_name] = tensor
    return converted


def load_max_model(path: str, arguments: ConversionArguments):
    """The model of ours that computes what the MAX checkpoint at `path` computes.

    Raises:
        ValueError: the file holds code or no state dict, tensors do not fit, or the target's description is missing.
    """
    from configuration_xrf import XRFMaskedConfig
    from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression

    state_dict = read_state_dict(path)
    table = tensor_table(state_dict)
    sizes = infer_sizes(state_dict, table)
    check_tensors(path, state_dict, table, sizes)
    fields = {
        "spectrum_length": (sizes["positions"] - 1) * sizes["patch"],
        "patch_size": sizes["patch"],
        "hidden_size": sizes["encoder width"],
        "num_hidden_layers": _num_layers(state_dict, "blocks"),
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": sizes["encoder mlp"],
    }
    target = (arguments.target_name, arguments.target_mean, arguments.target_std)
    if "fc.weight" in table:
        if None in target:
            raise ValueError(
                f"{path} is a regressor, and its checkpoint does not say what it predicts; give --target_name, "
                "--target_mean and --target_std of its training labels."
            )
        model_class = XRFForRegression
        fields |= {
            "pooling": "cls",
            "target_names": [arguments.target_name],
            "target_units": [arguments.target_unit],
            "target_mean": [arguments.target_mean],
            "target_std": [arguments.target_std],
            "target_min": [0.0],
            "target_max": [100.0],
        }
    else:
        if target != (None, None, None):
            raise ValueError(f"{path} is a pretrained model without a target; leave out the --target options.")
        model_class = XRFForMaskedSpectrumModeling
        fields |= {
            "decoder_hidden_size": sizes["decoder width"],
            "decoder_num_hidden_layers": _num_layers(state_dict, "decoder_blocks"),
            "decoder_num_attention_heads": arguments.decoder_num_attention_heads,
            "decoder_intermediate_size": sizes["decoder mlp"],
            "mask_ratio": 0.5,
        }
    config = XRFMaskedConfig(**fields)
    check_positions(path, state_dict, table)
    model = model_class(config).eval()
    model.load_state_dict(convert(state_dict, table))
    return model


def check_positions(path: str, state_dict: dict, table: dict) -> None:
    """Raise a `ValueError` if a position table is not the fixed one, which our models compute and do not store."""
    from modeling_xrf import sine_cosine_positions

    for name in (name for name, (our_name, _) in table.items() if our_name is None):
        positions = state_dict[name][0].float()
        difference = (positions - sine_cosine_positions(len(positions) - 1, positions.shape[1])).abs().max().item()
        if not difference <= POSITION_TOLERANCE:
            raise ValueError(
                f"{name} of {path} must be the fixed sine-cosine table, but differs from it by up to "
                f"{difference:.2g}; convert a checkpoint that kept it."
            )


def render_card(model, checkpoint_name: str) -> str:
    """The model card, Markdown with its metadata in front."""
    from huggingface_hub import ModelCard, ModelCardData

    config = model.config
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="tabular-regression" if config.target_names else "feature-extraction",
        license="mit",
        tags=["xrf", "x-ray-fluorescence", "geochemistry", "masked-autoencoder"],
    )
    return str(
        ModelCard.from_template(
            card_data,
            template_path=str(CARD_TEMPLATE),
            checkpoint_name=checkpoint_name,
            config=config,
            num_parameters=f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        )
    )


def _num_layers(state_dict: dict, prefix: str) -> int:
    """Layers under `prefix.N.`, the highest N + 1; at least one, so that an empty stack is reported as missing, and
    not more than there are tensors, so that one absurd N is reported as unknown."""
    matches = [re.match(rf"{prefix}\.(\d+)\.", str(name)) for name in state_dict]
    return min(1 + max((int(match[1]) for match in matches if match), default=0), max(len(state_dict), 1))


def _size(symbol, sizes: dict[str, int]):
    if isinstance(symbol, int):
        return symbol
    if symbol.startswith("3 "):
        width = sizes.get(symbol[2:])
        return None if width is None else 3 * width
    return sizes.get(symbol)


def main():
    parser = HfArgumentParser(ConversionArguments, description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="MAX's state dict, a .pth file")
    arguments, positional = parser.parse_args_into_dataclasses()

    from feature_extraction_xrf import XRFFeatureExtractor
    from hub_xrf import save_repository

    folder = Path(arguments.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"The output folder {folder} is not empty; choose a new or empty one.")
    model = load_max_model(positional.checkpoint, arguments)
    # MAX standardised over all 2048 channels, above the tube voltage too
    feature_extractor = XRFFeatureExtractor.for_config(model.config, scaling="standardize", limit_to_tube_kv=False)
    card = render_card(model, Path(positional.checkpoint).name)
    print(save_repository(folder, model, feature_extractor, card))


if __name__ == "__main__":
    run(main)
