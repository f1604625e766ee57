"""Pretrain an XRF model by masked spectrum modeling, or on the labels that simulated spectra know of themselves.

One GPU:

    accelerate launch --config_file scripts/configs/one_gpu.yaml scripts/run_msm.py --dataset corpora/cores \
        --model_size base --compile --output_dir runs/base

On the CPU, from spectra that are simulated while training (`accelerate launch` gives the process a thread for each
physical core with `cpu.yaml`, one without, or as many as OMP_NUM_THREADS says; the first line of the log tells):

    accelerate launch --config_file scripts/configs/cpu.yaml scripts/run_msm.py --dataset simulated_marine \
        --streaming --workers 1 --model_size tiny --max_steps 1000 --batch_size 64 --learning_rate 1e-3 \
        --output_dir runs/tiny

The same model, or a new one without `--model_name_or_path`, learns all that its simulation knows of each spectrum, and
so predicts concentrations of real ones without a laboratory value:

    accelerate launch --config_file scripts/configs/cpu.yaml scripts/run_msm.py --objective labels \
        --dataset simulated_any --streaming --workers 1 --model_name_or_path runs/tiny/model --max_steps 8000 \
        --batch_size 64 --learning_rate 1e-3 --output_dir runs/tiny-labels

Eight GPUs (batch_size counts the spectra of one process); `scripts/configs/fsdp2.yaml` in place of `eight_gpus.yaml`
divides model and optimiser among them, for models too large for one:

    accelerate launch --config_file scripts/configs/eight_gpus.yaml scripts/run_msm.py --dataset org/corpus \
        --model_size base --output_dir runs/base

Two processes on the CPU (`accelerate launch` would start one only):

    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 scripts/run_msm.py --dataset corpora/cores --model_size tiny \
        --output_dir runs/tiny

With `--resume` the same command continues an interrupted run from its last checkpoint, on the same data in the same
order. `output_dir` gets the repository `model/`, `checkpoints/`, `figures/`, `history.jsonl`, `run.json` and `logs/`.
"""

import hashlib
import json
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from command_line_xrf import HfArgumentParser, run

MODEL_CARDS = Path(__file__).resolve().parents[1] / "model_cards"
PIPELINE_TAGS = {"masked": "feature-extraction", "labels": "tabular-regression"}
TAGS = {"masked": "masked-spectrum-modeling", "labels": "simulated-labels"}
CARD_TEMPLATES = {"masked": MODEL_CARDS / "pretrained.md", "labels": MODEL_CARDS / "simulated_labels.md"}
LOWEST_ENERGY_KEV = 0.85  # with labels, of a new model: below it, air, windows and noise differ more than samples
VALIDATION_SPECTRA = 2000  # of a recipe that is streamed
# A resumed run must agree with its checkpoint on these: they decide the model, the data and their order.
FIXED_ON_RESUME = (
    "dataset", "data_root", "train_split", "streaming", "scaling", "limit_to_tube_kv", "lowest_energy_kev", "targets",
    "objective", "model_size", "config_file", "model_name_or_path", "mask_ratio", "masked_loss_only", "pooling",
    "regression_loss", "efficiency_sd", "optimizer", "batch_size", "gradient_accumulation", "seed",
)  # fmt: skip


@dataclass
class DataArguments:
    dataset: str = field(
        metadata={
            "help": "corpus: a folder of Parquet files or a Hub id, or a recipe: a YAML file or a packaged one's name"
        }
    )
    data_root: str | None = field(
        default=None, metadata={"help": "recipe: folder that its paths of files start from; by default the current"}
    )
    train_split: str = field(default="train", metadata={"help": "split to learn from"})
    validation_split: str = field(default="validation", metadata={"help": "split to measure on"})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read the training split while training, without storing it (needs max_steps); of a recipe, "
            "simulate fresh spectra while training, without end"
        },
    )
    scaling: str | None = field(
        default=None,
        metadata={"help": "standardize, sqrt, log or channel; by default the checkpoint's, for a new model sqrt"},
    )
    limit_to_tube_kv: bool | None = field(
        default=None,
        metadata={"help": "leave out patches above the tube voltage; by default as the checkpoint, else true"},
    )
    lowest_energy_kev: float | None = field(
        default=None,
        metadata={"help": "leave out patches below; by default as the checkpoint, else 0, with labels 0.85 keV"},
    )
    targets: list[str] | None = field(
        default=None,
        metadata={"help": "labels: targets to learn; by default all that simulated spectra know and vary"},
    )
    workers: int = field(
        default=0, metadata={"help": "processes that simulate, augment or read spectra, for each training process"}
    )
    pin_memory: bool = field(default=True, metadata={"help": "GPU: page-locked batches, which copy faster"})


@dataclass
class ModelArguments:
    objective: Literal["masked", "labels"] = field(
        default="masked", metadata={"help": "reconstruct hidden patches, or predict the labels of simulated spectra"}
    )
    model_size: Literal["tiny", "small", "base", "large"] = field(
        default="base", metadata={"help": "size of a new model"}
    )
    config_file: str | None = field(
        default=None,
        metadata={"help": "JSON with fields of XRFMaskedConfig, which go before model_size or the checkpoint's"},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "continue pretraining this model, a folder or a Hub id"}
    )
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of the measured patches to hide; by default the configuration's, 0.5"}
    )
    masked_loss_only: bool | None = field(
        default=None, metadata={"help": "loss on the masked patches only, or on all; by default the configuration's"}
    )
    pooling: Literal["cls", "mean"] | None = field(
        default=None,
        metadata={"help": "labels: predict from the CLS token or the mean; by default cls with a perceptron"},
    )
    regression_loss: Literal["mse", "gaussian"] | None = field(
        default=None, metadata={"help": "labels: predict a value, or its mean and variance; by default gaussian"}
    )
    efficiency_sd: float | None = field(
        default=None,
        metadata={
            "help": "labels: multiply spectra by smooth random curves of energy, new ones each time, whose logarithm "
            "has this standard deviation: what may be wrong in the simulation of an instrument; by default none"
        },
    )
    compile: bool = field(default=False, metadata={"help": "compile the model with torch.compile"})


@dataclass
class TrainingArguments:
    batch_size: int = field(default=256, metadata={"help": "spectra in a batch of one process"})
    gradient_accumulation: int = field(default=1, metadata={"help": "batches in an optimiser step"})
    epochs: float = field(default=100, metadata={"help": "passes over the training split"})
    max_steps: int | None = field(default=None, metadata={"help": "optimiser steps, in place of epochs"})
    learning_rate: float = field(default=1e-4, metadata={"help": "highest rate"})
    min_learning_rate: float = field(default=0.0, metadata={"help": "rate of the last step"})
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "how the rate falls after the warm-up"}
    )
    warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps in which the rate rises"})
    warmup_steps: int | None = field(default=None, metadata={"help": "their number, in place of warmup_ratio"})
    warmup_start_factor: float = field(default=0.0, metadata={"help": "rate of the first step, as a share; MAX: 0.5"})
    optimizer: Literal["adamw", "muon"] = field(
        default="muon",
        metadata={"help": "Muon for the matrices of layers and perceptron and AdamW for the rest, or AdamW for all"},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "for matrices"})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95], metadata={"help": "the two betas of AdamW"})
    gradient_clip: float = field(default=0.5, metadata={"help": "highest norm of the gradient; 0 does not clip"})
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "no, bf16 or fp16; by default the bf16 or fp16 that accelerate was launched with, or else bf16 "
            "where the machine has units for it"
        },
    )
    seed: int = field(default=0, metadata={"help": "of initialisation, data order, augmentation and masks"})


@dataclass
class OutputArguments:
    output_dir: str = field(metadata={"help": "new or empty folder, or that of the run to resume"})
    resume: bool = field(default=False, metadata={"help": "continue from the last checkpoint, if there is one"})
    log_every: int = field(default=50, metadata={"help": "steps between lines of the log"})
    validate_every: int = field(default=500, metadata={"help": "steps between validations; 0 never validates"})
    checkpoint_every: int = field(default=1000, metadata={"help": "steps between checkpoints; one follows the last"})
    keep_last: int = field(default=2, metadata={"help": "checkpoints to keep"})
    trackers: list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "trackers that accelerate knows, or none"}
    )
    logging_dir: str | None = field(default=None, metadata={"help": "of the trackers; by default output_dir/logs"})
    push_to_hub: bool = field(default=False, metadata={"help": "push model/ to the Hub"})
    hub_model_id: str | None = field(default=None, metadata={"help": "push: name of the repository, org/name"})
    hub_private: bool = field(default=False, metadata={"help": "push: make a new repository private"})


def check_arguments(data: DataArguments, model: ModelArguments, training: TrainingArguments, output: OutputArguments):
    """Raise `ValueError` for options that are out of range or do not fit together, before anything is loaded."""
    from accelerate.tracking import get_available_trackers
    from huggingface_hub.utils import validate_repo_id

    at_least_one = {
        "batch_size": training.batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "max_steps": training.max_steps,
        "log_every": output.log_every,
        "checkpoint_every": output.checkpoint_every,
        "keep_last": output.keep_last,
    }
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    not_negative = {
        "workers": data.workers,
        "min_learning_rate": training.min_learning_rate,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "gradient_clip": training.gradient_clip,
        "validate_every": output.validate_every,
    }
    for name, value in not_negative.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative, but is {value}.")
    for name, value in (("learning_rate", training.learning_rate), ("epochs", training.epochs)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, but is {value}.")
    shares = (("warmup_ratio", training.warmup_ratio), ("warmup_start_factor", training.warmup_start_factor))
    for name, value in shares:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but is {value}.")
    if model.mask_ratio is not None and not 0 < model.mask_ratio < 1:
        raise ValueError(
            f"mask_ratio must lie between 0 and 1, but is {model.mask_ratio}; hide some patches, not all."
        )
    if model.efficiency_sd is not None and not 0 < model.efficiency_sd <= 1:
        raise ValueError(
            f"efficiency_sd must be positive and at most 1, but is {model.efficiency_sd}; 0.1 means about 10 %."
        )
    if len(training.betas) != 2 or not all(0 <= beta < 1 for beta in training.betas):
        raise ValueError(f"betas must be two numbers in [0, 1), but are {training.betas}; 0.9 0.95 is usual.")
    if training.mixed_precision not in (None, "no", "bf16", "fp16"):
        raise ValueError(f"mixed_precision must be no, bf16 or fp16, but is {training.mixed_precision!r}.")
    of_the_other = {
        "labels": {"mask_ratio": model.mask_ratio, "masked_loss_only": model.masked_loss_only},
        "masked": {
            "targets": data.targets,
            "pooling": model.pooling,
            "regression_loss": model.regression_loss,
            "efficiency_sd": model.efficiency_sd,
        },
    }
    for name, value in of_the_other[model.objective].items():
        if value is not None:
            raise ValueError(f"{name} has no meaning for the objective {model.objective!r}; leave it out.")
    available = sorted(str(tracker) for tracker in get_available_trackers())
    for tracker in output.trackers:
        if tracker not in available and output.trackers != ["none"]:
            raise ValueError(f"The tracker {tracker!r} is not installed; use one of {', '.join(available)}, or none.")
    if output.push_to_hub and output.hub_model_id is None:
        raise ValueError("push_to_hub needs --hub_model_id org/name.")
    if output.hub_model_id is not None:
        validate_repo_id(output.hub_model_id)


def build_model(arguments: ModelArguments):
    """A new `XRFForMaskedSpectrumModeling`, or the checkpoint to continue from."""
    import torch

    from modeling_xrf import XRFForMaskedSpectrumModeling

    options = {name: getattr(arguments, name) for name in ("mask_ratio", "masked_loss_only")}
    options = config_fields(arguments) | {name: value for name, value in options.items() if value is not None}
    source = arguments.model_name_or_path
    if source is None:
        return XRFForMaskedSpectrumModeling(new_config(arguments, options))
    checkpoint_config(source)
    model, report = XRFForMaskedSpectrumModeling.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, **options
    )
    if report["missing_keys"]:
        raise ValueError(f"The checkpoint {source} has no decoder to continue with; give a pretrained one.")
    return model


def build_regression_model(arguments: ModelArguments, target_fields: dict | None):
    """A new `XRFForRegression`, a new head on the encoder of a checkpoint, or the checkpoint to continue from.

    Args:
        target_fields: fields of the configuration that describe the targets; `None` keeps the checkpoint's.
    """
    import torch
    import transformers

    from modeling_xrf import XRFForRegression

    source = arguments.model_name_or_path
    if target_fields is None:
        stale = dict.fromkeys(("interval_coverages", "interval_factors", "interval_floors", "familiarity_threshold"))
        for name in ("pooling", "regression_loss"):
            given, kept = getattr(arguments, name), getattr(checkpoint_config(source), name)
            if given not in (None, kept):
                raise ValueError(f"The checkpoint {source} has {name} {kept!r}, not {given!r}; leave the option out.")
        return XRFForRegression.from_pretrained(source, dtype=torch.float32, **(config_fields(arguments) | stale))

    options = config_fields(arguments) | {"regression_loss": arguments.regression_loss or "gaussian", **target_fields}
    config = new_config(arguments, options) if source is None else checkpoint_config(source, **options)
    options["pooling"] = config.pooling = arguments.pooling or config.embedding_pooling
    if source is None:
        return XRFForRegression(config)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # that the head is new is no news
    try:
        model, report = XRFForRegression.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options
        )
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if name.startswith("xrf."))
    if missing:
        raise ValueError(
            f"The checkpoint {source} lacks the encoder's weights {missing[0]}, ...; give a complete one."
        )
    return model


def new_config(arguments: ModelArguments, options: dict):
    """The `XRFMaskedConfig` of a new model; `options` go before `model_size`."""
    from configuration_xrf import XRFMaskedConfig

    return XRFMaskedConfig.from_dict({**XRFMaskedConfig.from_size(arguments.model_size).to_dict(), **options})


def checkpoint_config(source: str, **options):
    """The `XRFMaskedConfig` of a checkpoint of the family, with other `options`."""
    from transformers import AutoConfig

    from configuration_xrf import XRFMaskedConfig

    try:
        config = AutoConfig.from_pretrained(source, **options)
    except ValueError:
        config = None
    if not isinstance(config, XRFMaskedConfig):
        kind = "another architecture" if config is None else f"the architecture {config.model_type!r}"
        raise ValueError(f"The checkpoint {source} is of {kind}; give one of the XRF family.")
    return config


def config_fields(arguments: ModelArguments) -> dict:
    """The fields of `config_file`, all of them known to `XRFMaskedConfig`."""
    from configuration_xrf import XRFMaskedConfig

    path = arguments.config_file
    if path is None:
        return {}
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"config_file {path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f'config_file {path} must hold an object of fields, such as {{"spectrum_length": 512}}.')
    known = {*XRFMaskedConfig().to_dict(), *XRFMaskedConfig.__dataclass_fields__}
    for name in fields:
        if name not in known:
            raise ValueError(f"config_file {path} has the field {name!r}, which XRFMaskedConfig does not; correct it.")
    return fields


def build_feature_extractor(data: DataArguments, checkpoint: str | None, config, rows, objective: str):
    """The feature extractor of the checkpoint, or one for the options; `channel` statistics come from `rows`."""
    from feature_extraction_xrf import XRFFeatureExtractor
    from training_xrf import build_extractor

    names = ("scaling", "limit_to_tube_kv", "lowest_energy_kev")
    options = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    if checkpoint is not None:
        extractor = XRFFeatureExtractor.from_pretrained(checkpoint)
        if all(getattr(extractor, name) == value for name, value in options.items()):
            return extractor
        options = {**{name: getattr(extractor, name) for name in names}, **options}
    elif objective == "labels":
        options = {"lowest_energy_kev": LOWEST_ENERGY_KEV, **options}
    return build_extractor(config, rows, data.train_split, **options)


def open_training_split(data: DataArguments, training: TrainingArguments, recipe, targets=()):
    """The spectra to learn from, as recorded: a `datasets.Dataset`, a `datasets.IterableDataset` or a `Mixture`, which
    hands out `targets` as labels."""
    import corpus_xrf
    import streaming_xrf

    if recipe is None:
        return corpus_xrf.load_split(data.dataset, data.train_split, data.streaming)
    if data.streaming:
        return streaming_xrf.recipe_mixture(recipe, data.train_split, training.seed, data.data_root, targets)
    return corpus_xrf.load_split(corpus_xrf.recipe_corpus(recipe, data.data_root), data.train_split)


def open_labels(data: DataArguments, training: TrainingArguments, recipe, augmentation, checkpoint: str | None):
    """The targets that simulated spectra know, these spectra have and no augmentation changes.

    Returns:
        the fields of `XRFMaskedConfig` that describe them, or `None` where a regression checkpoint brings its own, and
        the names.
    """
    import corpus_xrf
    import streaming_xrf
    import training_xrf
    from dataset_builder.simulation import TARGET_NAMES

    changed = augmentation.changed_targets if augmentation else ()
    known = [name for name in TARGET_NAMES if name not in changed]
    own = checkpoint_config(checkpoint).target_names if checkpoint else None
    if own and data.targets not in (None, own):
        raise ValueError(f"The checkpoint {checkpoint} predicts {', '.join(own)}; leave --targets out to continue.")
    targets = data.targets or own or known
    for name in targets:
        if name not in known:
            reason = "the augmentation of the recipe changes it" if name in changed else "simulations know none"
            raise ValueError(f"The target {name!r} cannot be learnt: {reason}; choose from {', '.join(known)}.")
    if own:
        return None, targets
    rows = open_training_split(data, training, recipe, targets)
    labels = streaming_xrf.first_labels(rows, targets, training_xrf.LABEL_STATISTICS_SPECTRA)
    fields = training_xrf.target_fields(labels, targets)
    found = fields["target_names"]
    for name in data.targets or ():
        if name not in found:
            raise ValueError(f"The target {name!r} has no labels that vary in {data.dataset!r}; leave it out.")
    if not found:
        raise ValueError(f"{data.dataset!r} has no labels that vary; the objective labels needs simulated spectra.")
    if recipe.is_endless if recipe else corpus_xrf.is_simulated(rows):
        fields["calibration"] = "standardless"
    return fields, found


def open_validation_split(data: DataArguments, recipe, targets=()):
    """The spectra to measure on, as recorded: a `datasets.Dataset`."""
    import corpus_xrf
    import streaming_xrf

    if recipe is None:
        return corpus_xrf.load_split(data.dataset, data.validation_split)
    if data.streaming:
        return streaming_xrf.held_out_rows(recipe, data.validation_split, VALIDATION_SPECTRA, data.data_root, targets)
    return corpus_xrf.load_split(corpus_xrf.recipe_corpus(recipe, data.data_root), data.validation_split)


def open_batches(
    accelerator, data, training: TrainingArguments, extractor, rows, augmentation, targets, by_reach: bool
):
    """The training batches of this process with `targets` as labels, from the cache of features, or, where these are
    not stored, change, or shall share batches `by_reach`, from a stream that extracts them.

    Returns:
        a function that, given the number of a batch, returns an endless iterator of epochs and batches from there on,
        and the number of batches in an epoch (`None` where it is not known beforehand).
    """
    from datasets import Dataset
    from torch.utils.data import DataLoader

    import corpus_xrf
    import streaming_xrf

    loading = {"num_workers": data.workers, "pin_memory": data.pin_memory and accelerator.device.type == "cuda"}
    if augmentation or by_reach or not isinstance(rows, Dataset):
        source = rows
        if isinstance(rows, Dataset):
            source = streaming_xrf.Mixture([streaming_xrf.StoredSpectra(rows, training.seed, targets)])
        elif not isinstance(rows, streaming_xrf.Mixture):
            source = streaming_xrf.StreamedRows(rows, targets=targets)
        stream = streaming_xrf.SpectrumStream(
            source,
            extractor,
            data.train_split,
            training.batch_size,
            training.seed,
            accelerator.process_index,
            accelerator.num_processes,
            augmentation,
            by_reach,
        )
        batches_from = partial(
            streaming_xrf.stream_batches, DataLoader(stream, batch_size=None, **loading), stream, accelerator.device
        )
        if not isinstance(source, streaming_xrf.Mixture):
            return batches_from, None
        return batches_from, source.num_spectra / (training.batch_size * accelerator.num_processes)
    with accelerator.local_main_process_first():
        features = corpus_xrf.cached_features(rows, extractor, data.train_split, targets)
    loader = DataLoader(
        corpus_xrf.SpectrumBatches(features),
        batch_size=training.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=corpus_xrf.measured_patches,
        persistent_workers=data.workers > 0,
        **loading,
    )
    loader = accelerator.prepare(loader)
    if len(loader) == 0:
        raise ValueError(
            f"The split {data.train_split!r} has {len(rows)} spectra, fewer than one batch on each of "
            f"{accelerator.num_processes} processes; use a batch_size below {training.batch_size}."
        )
    return partial(corpus_xrf.repeated_epochs, loader), len(loader)


def render_card(model, extractor, options: dict, recipe, summary: dict) -> str:
    """The model card: what was trained, on what, with which command, what came out, and on what hardware."""
    from huggingface_hub import ModelCard, ModelCardData

    from training_xrf import LABEL_FLOOR

    local = recipe is not None or Path(options["dataset"]).is_dir()
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[options["objective"]],
        tags=["xrf", "x-ray-fluorescence", "geochemistry", TAGS[options["objective"]]],
        datasets=None if local else [options["dataset"]],
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(CARD_TEMPLATES[options["objective"]]),
        model=model,
        config=model.config,
        extractor=extractor,
        options=options,
        dataset_name=recipe.name if recipe else Path(options["dataset"]).name if local else options["dataset"],
        simulated=recipe is not None and recipe.is_endless,
        summary=summary,
        label_floor=LABEL_FLOOR,
    )
    return str(card)


def main(argv: list[str] | None = None):
    parser = HfArgumentParser(
        (DataArguments, ModelArguments, TrainingArguments, OutputArguments), description=__doc__.splitlines()[0]
    )
    arguments = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_arguments(*arguments)
    data, model_arguments, training, output = arguments
    options = {name: value for part in arguments for name, value in asdict(part).items()}

    import datasets
    import torch
    import transformers
    from accelerate import Accelerator, DataLoaderConfiguration, PartialState
    from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, parse_flag_from_env, set_seed
    from tqdm.auto import tqdm

    import corpus_xrf
    import streaming_xrf
    import training_xrf
    from dataset_builder.augmentation import augmentation_from_config
    from figures_xrf import plot_training_curves
    from files_xrf import claim_run_folder
    from hub_xrf import push_repository, save_repository
    from modeling_xrf import num_visible_patches
    from reliability_xrf import calibrate

    folder = Path(output.output_dir)
    trackers = [] if output.trackers == ["none"] else output.trackers
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    fastest = training_xrf.fastest_precision(device) if launched == "no" else launched
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision or fastest,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=training.gradient_accumulation, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=training.seed, non_blocking=True
        ),
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=output.logging_dir or str(folder / "logs")),
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}; on the CPU launch "
            "with ACCELERATE_USE_CPU=1 torchrun."
        )
    on_terminal = accelerator.is_main_process and sys.stderr.isatty()
    if not on_terminal:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()

    # Load: the corpus, the model, and the features that the model will see.
    recipe = corpus_xrf.find_recipe(data.dataset)
    if data.data_root is not None and recipe is None:
        raise ValueError(f"data_root belongs to a recipe, and the dataset {data.dataset!r} is none; leave it out.")
    if data.streaming and recipe is None and training.max_steps is None:
        raise ValueError("The length of a stream is not known beforehand; give --max_steps.")
    augmentation = augmentation_from_config(recipe.augmentation) if recipe and recipe.augmentation else None
    set_seed(training.seed)
    labelled, targets = model_arguments.objective == "labels", ()
    if labelled:
        with accelerator.local_main_process_first():
            fields, targets = open_labels(data, training, recipe, augmentation, model_arguments.model_name_or_path)
        model = build_regression_model(model_arguments, fields)
    else:
        model = build_model(model_arguments)
    model.set_attn_implementation(training_xrf.fastest_attention(accelerator.device, accelerator.mixed_precision))
    config = model.config
    if not labelled and num_visible_patches(config, config.num_patches) < 1:
        raise ValueError(f"mask_ratio {config.mask_ratio} leaves none of {config.num_patches} patches; lower it.")
    with accelerator.local_main_process_first():
        train_rows = open_training_split(data, training, recipe, targets)
    checkpoint, objective = model_arguments.model_name_or_path, model_arguments.objective
    extractor = build_feature_extractor(data, checkpoint, config, train_rows, objective)
    efficiency = None
    if model_arguments.efficiency_sd is not None:
        efficiency = training_xrf.UncertainEfficiency(extractor, model_arguments.efficiency_sd, training.seed)
    by_reach = labelled and config.num_hidden_layers > 0  # an encoder of patches has none to spare
    batches_from, batches_per_epoch = open_batches(
        accelerator, data, training, extractor, train_rows, augmentation, targets, by_reach
    )
    total_steps = training.max_steps
    if total_steps is None:
        total_steps = max(1, round(training.epochs * batches_per_epoch / training.gradient_accumulation))
    global_batch_size = training.batch_size * training.gradient_accumulation * accelerator.num_processes
    validation = None
    if output.validate_every:
        with accelerator.local_main_process_first():
            validation_rows = open_validation_split(data, recipe, targets)
            features = corpus_xrf.cached_features(validation_rows, extractor, data.validation_split, targets)
        of_split = (features, data.validation_split)
        if labelled:
            validation = training_xrf.LabelValidation(accelerator, *of_split, training.batch_size)
        else:
            corpus_mean = training_xrf.mean_target(train_rows, extractor, data.train_split, config)
            validation = training_xrf.Validation(
                accelerator, extractor, validation_rows, *of_split, corpus_mean, training.batch_size, training.seed
            )

    # Prepare.
    fixed = {name: options[name] for name in FIXED_ON_RESUME} | {"processes": accelerator.num_processes}
    fixed["recipe"] = recipe and hashlib.sha256(repr(recipe.to_dict()).encode()).hexdigest()[:16]
    streamed = data.streaming or augmentation or by_reach
    fixed["workers"] = data.workers if streamed else None  # each reads its own share
    progress = {"step": 0, "interval_loss": 0.0, "interval_steps": 0}
    found = training_xrf.checkpoints(folder / "checkpoints") if output.resume else []
    if found:
        progress = training_xrf.read_progress(found[-1], expected=fixed)
    first_step = progress["step"]
    if accelerator.is_main_process:
        claim_run_folder(folder, "run_msm.py", options, resume=output.resume)
    accelerator.wait_for_everyone()
    if model_arguments.compile:
        model.compile()  # for another shape, should batches differ in the number of measured patches
    optimizer = training_xrf.build_optimizer(
        model, training.optimizer, training.learning_rate, training.weight_decay, training.betas
    )
    num_parameters = model.num_parameters()
    training_xrf.set_sharded_precision(accelerator)
    model, optimizer = accelerator.prepare(model, optimizer)
    if found:
        accelerator.load_state(str(found[-1]))
    batches = batches_from(first_step * training.gradient_accumulation)
    history = training_xrf.History(folder / "history.jsonl", first_step) if accelerator.is_main_process else None
    if trackers:
        settings = {name: value if isinstance(value, (int, float)) else str(value) for name, value in options.items()}
        accelerator.init_trackers("pretraining", settings)
    warmup_steps = training.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(training.warmup_ratio * total_steps)
    precision = training_xrf.HALF_PRECISIONS.get(accelerator.mixed_precision, torch.float32)
    peak_flops = training_xrf.matrix_peak(accelerator.device, precision)
    flops_of = training_xrf.regression_flops if labelled else training_xrf.training_flops
    if labelled:
        loss_of = partial(training_xrf.label_loss, config=config, efficiency=efficiency)
    else:
        loss_of = partial(training_xrf.masked_loss, config=config, seed=training.seed)
    threads = f" with {torch.get_num_threads()} thread(s) each" if accelerator.device.type == "cpu" else ""
    accelerator.print(
        f"{num_parameters:,} parameters, {total_steps} steps of {global_batch_size} spectra from step "
        f"{first_step}, {accelerator.num_processes} process(es) on {accelerator.device.type}{threads}; 100 % of peak "
        f"is {peak_flops:.3g} FLOP/s, measured on square {str(precision).removeprefix('torch.')} matrix products; "
        f"attention {config._attn_implementation}",
        flush=True,
    )
    bar = tqdm(total=total_steps, initial=first_step, desc="pretraining", disable=not on_terminal, dynamic_ncols=True)

    def report(line: str):
        if accelerator.is_main_process:
            bar.write(line) if on_terminal else print(line, flush=True)

    # Loop. Nothing in it waits for the GPU, except where a line is logged.
    training_xrf.keep_freed_memory()
    model.train()
    interval_loss = torch.tensor(progress["interval_loss"], device=accelerator.device)  # summed since the last line
    interval_steps = progress["interval_steps"]
    timed_steps, timed_flops = 0, 0  # the latter of one spectrum of every batch
    interval_start = time.perf_counter()
    for step in range(first_step + 1, total_steps + 1):
        learning_rate = training_xrf.learning_rate_at(
            step - 1,
            total_steps,
            training.learning_rate,
            training.min_learning_rate,
            warmup_steps,
            training.warmup_start_factor,
            training.schedule,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        parts = [next(batches) for _ in range(training.gradient_accumulation)]
        weights = training_xrf.loss_weights(accelerator, [batch for _, batch in parts], config)
        for (epoch, batch), weight in zip(parts, weights):
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    loss = weight * loss_of(model, batch, epoch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    gradient_norm = accelerator.clip_grad_norm_(model.parameters(), training.gradient_clip or math.inf)
                optimizer.step()
                optimizer.zero_grad()
            interval_loss += loss.detach() / training.gradient_accumulation
            timed_flops += flops_of(config, batch["patch_ids"].shape[1])
        interval_steps += 1
        timed_steps += 1
        bar.update()
        last = step == total_steps

        if step % output.log_every == 0 or last:
            mean_loss = accelerator.reduce(interval_loss, "mean").item() / interval_steps
            seconds = (time.perf_counter() - interval_start) / timed_steps
            if not math.isfinite(mean_loss):
                raise ValueError(
                    f"The loss is {mean_loss} at step {step}; use a learning_rate below {training.learning_rate:g}."
                )
            spectra_per_s = global_batch_size / seconds
            flops = timed_flops / (timed_steps * training.gradient_accumulation)  # of one spectrum
            peak_per_s = peak_flops * accelerator.num_processes / flops  # spectra
            record = {
                "step": step,
                "epoch": epoch,
                "loss": mean_loss,
                "learning_rate": learning_rate,
                "gradient_norm": gradient_norm.item(),
                "spectra_per_s": spectra_per_s,
                "share_of_peak": spectra_per_s / peak_per_s,
            }
            if accelerator.is_main_process:
                history.add(record)
            accelerator.log({name: value for name, value in record.items() if name != "step"}, step=step)
            if on_terminal:
                bar.set_postfix_str(
                    f"loss {mean_loss:.4f}, rate {learning_rate:.1e}, gradient norm {record['gradient_norm']:.3f}, "
                    f"{spectra_per_s:.0f} spectra/s, {100 * record['share_of_peak']:.0f} % of peak"
                )
            else:
                report(training_xrf.log_line(record, total_steps, seconds * (total_steps - step)))
            interval_loss, interval_steps, timed_steps, timed_flops = torch.zeros_like(interval_loss), 0, 0, 0
            interval_start = time.perf_counter()

        pause_start = time.perf_counter()
        if validation is not None and (step % output.validate_every == 0 or last):
            whole = training_xrf.whole_model(accelerator, model)
            measured = validation.measure(whole)
            if accelerator.is_main_process:
                history.add({"step": step, **measured})
                if not labelled:
                    validation.draw(whole, str(folder / "figures" / "validation.png"))
            accelerator.log({name: value for name, value in measured.items() if isinstance(value, float)}, step=step)
            report(f"step {step}: {validation.line(measured)}")
        if step % output.checkpoint_every == 0 or last:
            progress = {
                "step": step,
                "interval_loss": accelerator.reduce(interval_loss, "mean").item(),
                "interval_steps": interval_steps,
                **fixed,
            }
            training_xrf.save_checkpoint(accelerator, folder / "checkpoints", progress, output.keep_last)
        interval_start += time.perf_counter() - pause_start
    bar.close()

    # Save.
    whole = training_xrf.whole_model(accelerator, model)
    if accelerator.is_main_process:
        if labelled and validation is not None:
            held_out = validation.batches()
            # intervals shall hold for spectra such as were learnt from
            if augmentation:
                held_out = streaming_xrf.augmented_batches(
                    validation_rows, extractor, data.validation_split, training.seed, augmentation, targets
                )
            if efficiency:
                held_out = (efficiency(batch, epoch=-1) for batch in held_out)
            calibrate(whole, map(corpus_xrf.measured_patches, held_out))
        plot_training_curves(str(folder / "figures" / "training.png"), history.records)
        summary = {
            "num_spectra": None if data.streaming else len(train_rows),
            "command": f"accelerate launch scripts/run_msm.py {shlex.join(sys.argv[1:] if argv is None else argv)}",
            "processes": accelerator.num_processes,
            "precision": str(precision).removeprefix("torch."),
            "steps": total_steps,
            "global_batch_size": global_batch_size,
            "warmup_steps": warmup_steps,
            "training": history.last("loss"),
            "validation": history.last("validation_loss"),
            **training_xrf.provenance(),
        }
        card = render_card(whole, extractor, options, recipe, summary)
        with training_xrf.writing(folder / "model"):
            save_repository(folder / "model", whole, extractor, card)
        print(f"The model is in {folder / 'model'}.", flush=True)
        if output.push_to_hub:
            print(f"Pushed to {push_repository(folder / 'model', output.hub_model_id, private=output.hub_private)}.")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
