"""Adapt a pretrained XRF model to laboratory labels, and measure the result beside other methods.

A table of your own: spectra in its columns, or samples whose instrument files lie in the same folder (or elsewhere):

    python scripts/run_regression.py data.csv --target CaCO3
    python scripts/run_regression.py samples.csv --target CaCO3 TOC --spectra scans/ --output_dir runs/carbon

Every number is of samples (whole cores, where they are named) that took no part in fitting. The folder of the run gets
`report.html`, a page for people, `predictions.csv` with every spectrum of the table and the folder, and `model/`.
A table of numbers without an energy axis, such as reflectances, works too (without a pretrained model):

    python scripts/run_regression.py reflectance.csv --target TiO2 --features 414nm 749nm 901nm

A corpus with its own splits, LoRA with 100 labels:

    python scripts/run_regression.py --model_name_or_path runs/pretraining/model --dataset corpora/simulated \
        --targets CaCO3 --num_labels 100 --method lora --output_dir runs/caco3

All weights, slower towards the input, on a GPU in mixed precision, with a standard deviation beside every value:

    python scripts/run_regression.py --model_name_or_path org/xrf-base --dataset org/cores --targets CaCO3 TOC \
        --method full --layer_decay 0.75 --regression_loss gaussian --mixed_precision bf16 --output_dir runs/both

A ridge regression on the frozen embedding, in seconds, and on to the Hub:

    python scripts/run_regression.py --model_name_or_path org/xrf-base --dataset org/cores --targets TOC \
        --method probe --output_dir runs/toc --push_to_hub --hub_model_id org/xrf-base-toc

The base is never changed. `output_dir` gets `model/` (an adapter or a whole repository), `metrics.json`, the table
`results.md`, a parity plot per target, the training curve, and TensorBoard logs. A GPU is used where there is one.
"""

import itertools
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub.utils import validate_repo_id

from command_line_xrf import HfArg, HfArgumentParser, run

if TYPE_CHECKING:
    from finetuning_xrf import LabelledSpectra
    from laboratory_xrf import LaboratoryTable

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = ROOT / "model_cards" / "xrf-tiny"
CARD_TEMPLATE = ROOT / "model_cards" / "finetuned.md"
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx", ".xls", ".ods")
DEFAULT_LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}
EVALUATION_BATCH_SIZE = 256


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "pretrained repository, a folder or a Hub id; by default the one that comes with the source"
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub id"})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id under which a local base is or will be found; adapters name it"}
    )
    pooling: Literal["mean", "cls"] | None = field(
        default=None,
        metadata={"help": "embedding: mean over the measured patches or CLS token; by default cls with a perceptron"},
    )
    regression_loss: Literal["mse", "gaussian"] = field(
        default="mse", metadata={"help": "predict one value, or a mean and a standard deviation"}
    )


@dataclass
class DataArguments:
    targets: list[str] = HfArg(aliases=["--target"], help="columns with laboratory values to learn")
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "a table of your own (.csv, .parquet), or a corpus: a folder of Parquet files or a Hub id; the "
            "first argument needs no name"
        },
    )
    target_units: list[str] | None = field(
        default=None, metadata={"help": "unit of each target; by default what the table or corpus says"}
    )
    train_split: str = field(default="train", metadata={"help": "split that labels are drawn from"})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "split that stops training; by default 'validation' where the corpus has it; with 'none', cores "
            "or samples are set aside from the drawn labels"
        },
    )
    validation_fraction: float = field(
        default=0.2, metadata={"help": "share of the drawn labels set aside where there is no validation split"}
    )
    test_split: str = field(default="test", metadata={"help": "split that is measured, and used for nothing else"})
    num_labels: int | None = field(
        default=None, metadata={"help": "labelled training spectra to draw; by default all of them"}
    )
    seed: int = field(default=0, metadata={"help": "of the draw, the initialisation and the order of training"})


@dataclass
class TableArguments:
    spectra: str | None = field(
        default=None, metadata={"help": "table: folder of the instrument files; by default that of the table"}
    )
    features: list[str] | None = field(
        default=None, metadata={"help": "table: numeric columns that are the inputs, in the place of spectra"}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "table: column that names what belongs together; by default core, or sample"}
    )
    validation: Literal["auto", "leave_group_out", "depth_blocks", "leave_one_out", "k_fold"] = field(
        default="auto",
        metadata={
            "help": "table: what is predicted from the rest; by default its own test split, whole groups, blocks of "
            "depth of the only core, or single rows"
        },
    )
    column_mapping: str | None = field(
        default=None, metadata={"help": "table: JSON file that says which column of a wide table is what"}
    )
    gain_kev: float | None = field(
        default=None, metadata={"help": "table: energy per channel in keV, of spectra that do not bring their own"}
    )
    offset_kev: float | None = field(default=None, metadata={"help": "table: energy of channel 0 in keV, likewise"})
    tube_kv: float | None = field(default=None, metadata={"help": "table: tube voltage in kV, likewise"})


@dataclass
class MethodArguments:
    method: Literal["auto", "lora", "full", "probe"] = field(
        default="auto",
        metadata={
            "help": "made for few labels and chosen by them, low-rank updates, all weights, or a ridge regression on "
            "the frozen embedding"
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "lora: rank of the updates"})
    lora_alpha: float = field(default=16, metadata={"help": "lora: the updates are scaled by alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: share of inputs an update does not see"})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "lora: linear layers to update; by default those of attention and perceptrons"}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "highest rate; by default 1e-3 for lora and 1e-4 for full"}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "rate of each layer as a share of that of the layer above it"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "of AdamW, for matrices"})
    warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps in which the rate rises"})
    gradient_clip: float = field(default=1.0, metadata={"help": "highest norm of the gradient; 0 does not clip"})
    batch_size: int = field(default=16, metadata={"help": "spectra in a step"})
    epochs: float = field(default=100, metadata={"help": "passes over the training labels, at most"})
    max_steps: int | None = field(default=None, metadata={"help": "optimiser steps, in place of epochs"})
    patience: int = field(
        default=20, metadata={"help": "stop after so many epochs without a lower validation loss; 0 never stops"}
    )
    mixed_precision: Literal["no", "bf16"] = field(default="no", metadata={"help": "arithmetic of training"})


@dataclass
class OutputArguments:
    output_dir: str | None = field(
        default=None, metadata={"help": "new or empty folder; by default runs/ with the names of table and targets"}
    )
    trackers: Literal["tensorboard", "none"] = field(default="tensorboard", metadata={"help": "where curves go"})
    logging_dir: str | None = field(default=None, metadata={"help": "of TensorBoard; by default output_dir/logs"})
    license: str = field(default="apache-2.0", metadata={"help": "licence of the result, a Hub identifier"})
    push_to_hub: bool = field(default=False, metadata={"help": "push model/ to the Hub"})
    hub_model_id: str | None = field(default=None, metadata={"help": "push: name of the repository, org/name"})
    hub_private: bool = field(default=False, metadata={"help": "push: make a new repository private"})


def check_arguments(model: ModelArguments, data: DataArguments, training: MethodArguments, output: OutputArguments):
    """Raise `ValueError` for options that are out of range or do not fit together, before anything is loaded."""
    if data.dataset is None:
        raise ValueError("Name a table, a corpus folder or a Hub id first, such as data.csv --target CaCO3.")
    for name in ("lora_rank", "batch_size"):
        if getattr(training, name) < 1:
            raise ValueError(f"{name} must be at least 1, but is {getattr(training, name)}.")
    for name in ("learning_rate", "epochs", "max_steps"):
        value = getattr(training, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, but is {value}.")
    for name in ("weight_decay", "gradient_clip", "patience"):
        if getattr(training, name) < 0:
            raise ValueError(f"{name} must not be negative, but is {getattr(training, name)}.")
    for name, share in (("lora_dropout", training.lora_dropout), ("warmup_ratio", training.warmup_ratio)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must lie in [0, 1), but is {share}.")
    if not 0 < training.layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], but is {training.layer_decay}; 0.75 is usual, 1 is none.")
    if not 0 < data.validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, but is {data.validation_fraction}.")
    if data.target_units is not None and len(data.target_units) != len(data.targets):
        raise ValueError(f"target_units must name one unit per target ({len(data.targets)}), not {data.target_units}.")
    if len({data.train_split, data.test_split, data.validation_split}) < 3:
        raise ValueError("train_split, validation_split and test_split must differ; nothing is tested on what it saw.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("run_regression.py trains in one process; start it with python instead of a launcher.")
    if output.push_to_hub and output.hub_model_id is None:
        raise ValueError("push_to_hub needs --hub_model_id org/name.")
    if output.push_to_hub:
        validate_repo_id(output.hub_model_id)
    local = Path(model.model_name_or_path or DEFAULT_MODEL).is_dir() and model.base_model_id is None
    if output.push_to_hub and training.method == "lora" and local:
        raise ValueError(
            f"An adapter on the local folder {model.model_name_or_path} cannot be loaded by others; push that base "
            "first, then name it with --base_model_id org/name."
        )


@dataclass
class Spectra:
    """Labelled spectra by their use.

    Args:
        drawn: of the training split, all that were drawn; the baselines are fitted to them.
        fitted: of these, the ones the model is fitted to.
        stopping: those that stop training, of the validation split or set aside from `drawn` (`None`: nothing does).
        measured: the test split, and the validation split where there is one, by their names.
    """

    drawn: "LabelledSpectra"
    fitted: "LabelledSpectra"
    stopping: "LabelledSpectra | None"
    measured: dict[str, "LabelledSpectra"]


def load_spectra(data: DataArguments, early_stopping: bool, feature_extractor) -> tuple[Spectra, list[str]]:
    """Draw the labels, decide what stops training, and read only the spectra needed; also the targets' units.

    Raises:
        ValueError: an unknown split or target, too few labels, or constant ones.
    """
    import numpy as np
    from datasets import get_dataset_split_names

    from corpus_xrf import load_split
    from evaluation_xrf import draw_labelled
    from finetuning_xrf import MIN_LABELS, carve_validation, check_labels, read_labels, read_spectra, read_target_units

    splits = {}

    def read(split: str, num_labels: int | None = None) -> "LabelledSpectra":
        rows = splits[split] = load_split(data.dataset, split)
        labels, groups = read_labels(rows, data.targets)
        check_labels(labels, data.targets, f"Split {split!r}")
        picked = np.flatnonzero(~np.isnan(labels).all(axis=1))
        if num_labels is not None:
            picked = draw_labelled(labels, num_labels, data.seed, groups)
        return read_spectra(rows, split, picked, labels, groups, feature_extractor)

    drawn = fitted = read(data.train_split, data.num_labels)
    measured = {data.test_split: read(data.test_split)}
    stopping = None
    validation_split = data.validation_split
    if validation_split is None:
        validation_split = "validation" if "validation" in get_dataset_split_names(data.dataset) else "none"
    if validation_split != "none":
        validation = read(validation_split)
        measured = {validation_split: validation, **measured}
        stopping = validation if early_stopping else None
    elif early_stopping:
        aside = carve_validation(drawn.groups, data.validation_fraction, data.seed)
        fitted, stopping = drawn.select(np.flatnonzero(~aside)), drawn.select(np.flatnonzero(aside))
        check_labels(stopping.labels, data.targets, "Early stopping")
    check_labels(fitted.labels, data.targets, "Training", MIN_LABELS)
    units = data.target_units or read_target_units(splits[data.train_split], data.targets)
    return Spectra(drawn, fitted, stopping, measured), units


def start_model(encoder, spectra: Spectra, units: list[str], model: ModelArguments, targets, training, seed: int = 0):
    """A new model around the pretrained encoder: the result of the methods `auto` and `probe`, and where the others
    start, a head that is a ridge regression on the embeddings of the labelled spectra (Kumar et al. 2022, arXiv
    2202.10054)."""
    import torch

    import finetuning_xrf

    if training.method == "auto":
        from adaptation_xrf import adapt

        return adapt(encoder, spectra.fitted, targets, units, seed)
    encoder = getattr(encoder, "xrf", encoder)

    adapted = finetuning_xrf.regression_model(
        encoder, targets, units, spectra.fitted.labels, model.pooling, model.regression_loss
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    embeddings = finetuning_xrf.embed(adapted, spectra.fitted, EVALUATION_BATCH_SIZE)
    least_penalty = 0.0 if training.method == "probe" else finetuning_xrf.START_PENALTY
    probe = finetuning_xrf.fit_probe(embeddings, spectra.fitted.labels, spectra.fitted.groups, least_penalty)
    finetuning_xrf.write_probe(adapted, probe)
    if training.method == "lora":
        adapted = finetuning_xrf.lora_model(
            adapted, training.lora_rank, training.lora_alpha, training.lora_dropout, training.lora_targets
        )
        training.lora_targets = sorted(adapted.peft_config["default"].target_modules)  # for the card
    return adapted


def fine_tune(model, spectra: Spectra, training: MethodArguments, seed: int, folder: Path, logging_dir: Path | None):
    """Train a model in place; with spectra that stop the training, keep the weights of the lowest loss on them, which
    may be those it started with.

    Args:
        folder: for checkpoints; it is gone afterwards.

    Returns:
        `Trainer`'s log history and the step whose weights were kept.

    Raises:
        ValueError: the loss is no longer a number.
    """
    import torch
    import transformers
    from transformers.integrations import TensorBoardCallback

    from finetuning_xrf import LogLines, layerwise_parameter_groups, validation_metrics

    callbacks, stopping = [LogLines()], {}
    if spectra.stopping is not None:
        callbacks.append(transformers.EarlyStoppingCallback(early_stopping_patience=training.patience))
        stopping = {
            "eval_strategy": "epoch",
            "eval_on_start": True,
            "save_strategy": "best",
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
            "greater_is_better": False,
            "save_total_limit": 1,
            "save_only_model": True,
        }
    if logging_dir is not None:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(logging_dir))))
    groups = layerwise_parameter_groups(model, training.learning_rate, training.weight_decay, training.layer_decay)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=training.batch_size,
            per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
            num_train_epochs=training.epochs,
            max_steps=training.max_steps or -1,
            learning_rate=training.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=training.warmup_ratio,
            max_grad_norm=training.gradient_clip,
            use_cpu=not torch.cuda.is_available(),
            bf16=training.mixed_precision == "bf16",
            seed=seed,
            label_names=["labels"],
            remove_unused_columns=False,
            logging_strategy="epoch",
            logging_nan_inf_filter=False,  # it would wait for the GPU in every step
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
            **{"eval_strategy": "no", "save_strategy": "no", **stopping},
        ),
        train_dataset=spectra.fitted,
        eval_dataset=spectra.stopping,
        compute_metrics=validation_metrics(model.config.target_names),
        callbacks=callbacks,
        optimizers=(torch.optim.AdamW(groups, lr=training.learning_rate), None),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # the model itself, no autocast
    shutil.rmtree(folder, ignore_errors=True)
    state, history = trainer.state, trainer.state.log_history
    losses = [record[name] for record in history for name in ("loss", "eval_loss") if name in record]
    if not all(loss < float("inf") for loss in losses):
        raise ValueError(f"The loss is no longer a number; lower the learning rate from {training.learning_rate:g}.")
    if spectra.stopping is None:
        return history, state.global_step
    if history[0]["eval_loss"] <= state.best_metric:
        model.load_state_dict(start, strict=False)
        return history, 0
    return history, state.best_global_step


def measure(model, method: str, baselines: dict, spectra: Spectra, folder: Path) -> tuple[list[dict], list[str]]:
    """Metrics of the model and the baselines on every measured split, and a parity plot per target of the last one.

    Returns:
        the rows of the table of results, and the names of the plots in `folder`.
    """
    from evaluation_xrf import regression_metric
    from figures_xrf import plot_parity
    from finetuning_xrf import clamp, predict, result_rows

    config = model.config
    metric, rows, figures = regression_metric(config.target_names), [], []
    for split, labelled in spectra.measured.items():
        references = labelled.labels.numpy()
        values, sd = predict(model, labelled, EVALUATION_BATCH_SIZE)
        predictions = {method: values}
        for name, baseline in baselines.items():
            predictions[name] = clamp(baseline.predict(labelled.counts), config)
        for name, values in predictions.items():
            rows += result_rows(metric, split, name, values, references, config)
    for column, (target, unit) in enumerate(zip(config.target_names, config.target_units)):
        suffix = "" if len(config.target_names) == 1 else "_" + re.sub(r"\W+", "_", target)
        figures.append(f"parity{suffix}.png")
        plot_parity(
            folder / figures[-1],
            references[:, column],
            {name: predictions[name][:, column] for name in (method, "ridge")},
            target,
            unit,
            None if sd is None else {method: sd[:, column]},
        )
    return rows, figures


def run_on_corpus(model_arguments, data, training, output, encoder, feature_extractor) -> None:
    """Adapt the encoder to a corpus and measure it on the corpus' own splits."""
    from evaluation_xrf import MeanBaseline, RidgeBaseline
    from figures_xrf import plot_training_curves
    from files_xrf import write_json, write_text
    from finetuning_xrf import markdown_table, shared_groups
    from training_xrf import provenance

    early_stopping = trains(training) and training.patience > 0
    spectra, units = load_spectra(data, early_stopping, feature_extractor)
    baselines = {
        "mean": MeanBaseline(data.targets).fit(spectra.drawn.counts, spectra.drawn.labels),
        "ridge": RidgeBaseline(data.targets).fit(spectra.drawn.counts, spectra.drawn.labels, spectra.drawn.groups),
    }
    model = start_model(encoder, spectra, units, model_arguments, data.targets, training, data.seed)
    folder = claim_folder(data, output, model_arguments, training)
    step = None
    if trains(training):
        logging_dir = None if output.trackers == "none" else Path(output.logging_dir or folder / "logs")
        history, step = fine_tune(model, spectra, training, data.seed, folder / "checkpoints", logging_dir)
        plot_training_curves(folder / "training.png", history)

    results, figures = measure(model, training.method, baselines, spectra, folder)
    set_aside = spectra.fitted is not spectra.drawn
    summary = {
        "method": training.method,
        "model": model_arguments.base_model_id or model_arguments.model_name_or_path,
        "dataset": data.dataset,
        "num_labels": len(spectra.drawn),
        "seed": data.seed,
        "stopping_labels": {"number": len(spectra.stopping), "set_aside": set_aside} if early_stopping else None,
        "step": step,
        "shared_groups": shared_groups(spectra.drawn, spectra.measured[data.test_split]),
        **provenance(),
        "results": results,
    }
    save_model(folder, model, feature_extractor, summary, figures, model_arguments, training, output)
    write_json(folder / "metrics.json", summary)
    write_text(folder / "results.md", markdown_table(results) + "\n")  # last: the run is complete
    print(markdown_table(results))
    print(f"Written to {folder}: model/, metrics.json, results.md, {', '.join(figures)}")


def trains(training: MethodArguments) -> bool:
    """Whether the method takes optimiser steps."""
    return training.method in ("lora", "full")


def claim_folder(data: DataArguments, output: OutputArguments, *others) -> Path:
    """The folder of the run, which from now on is this run's."""
    from files_xrf import claim_run_folder

    options = {name: value for part in (data, output, *others) for name, value in asdict(part).items()}
    folder = output.output_dir
    if folder is None:
        name = "-".join([Path(data.dataset).stem, *data.targets])
        places = (f"runs/{re.sub(r'[^A-Za-z0-9]+', '-', name)}{suffix}" for suffix in numbered())
        folder = next(place for place in places if not Path(place).exists())
    return claim_run_folder(folder, "run_regression.py", options)


def numbered():
    """Endings of a name and of its successors: nothing, -2, -3, ..."""
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))


def save_model(folder: Path, model, feature_extractor, summary, figures, model_arguments, training, output) -> None:
    """Write `model/`, an adapter or a whole repository with its card, and push it where that was asked for."""
    from finetuning_xrf import render_card
    from hub_xrf import push_repository, save_adapter_repository, save_repository

    base = model_arguments.model_name_or_path
    local = Path(base).is_dir()
    base_id = model_arguments.base_model_id or (None if local else base)
    card = render_card(CARD_TEMPLATE, summary, model.config, asdict(training), base_id, output.license, figures)
    if training.method == "lora":
        adapter_config = model.peft_config["default"]
        adapter_config.base_model_name_or_path = base_id or str(Path(base).resolve())
        adapter_config.revision = None if local else model_arguments.model_revision
        save_adapter_repository(folder / "model", model, feature_extractor, card)
    else:
        save_repository(folder / "model", model, feature_extractor, card)
    for figure in figures:
        shutil.copyfile(folder / figure, folder / "model" / figure)
    if output.push_to_hub:
        print(f"Pushed to {push_repository(folder / 'model', output.hub_model_id, private=output.hub_private)}")


# --- a table of one's own ---


def read_table(data: DataArguments, options: TableArguments) -> "LaboratoryTable":
    """The table and its spectra, and on the terminal how they were found."""
    from dataset_builder import ColumnMapping
    from laboratory_xrf import read_laboratory_table

    if data.num_labels is not None:
        raise ValueError("num_labels draws from a corpus; leave labels out of the table instead.")
    mapping = ColumnMapping.from_json(options.column_mapping) if options.column_mapping else None
    calibration = {"gain_kev": options.gain_kev, "offset_kev": options.offset_kev, "tube_kv": options.tube_kv}
    table = read_laboratory_table(
        data.dataset, data.targets, options.spectra, options.features, options.group_column, mapping, calibration
    )
    if data.target_units is not None:
        table = replace(table, target_units=data.target_units)
    for note in table.notes:
        print(note)
    return table


def table_methods(table: "LaboratoryTable", adapt_to: Callable | None, feature_extractor) -> dict:
    """What is compared on a table: name -> method of `protocols_xrf`, the one whose model is kept first.

    Args:
        adapt_to: function of [`LabelledSpectra`] that returns an adapted model; `None` for a table without spectra.
    """
    from evaluation_xrf import MeanBaseline, RidgeBaseline
    from finetuning_xrf import AdaptedModel, LnWherePositive
    from peers_xrf import ChannelPeer, OnChannels
    from tabular_xrf import GaussianProcess, TabularPeer

    names = list(table.data.target_names)
    if adapt_to is None:
        return {
            "gaussian process": GaussianProcess(names),
            "support vectors": TabularPeer("svr", names),
            "ridge": TabularPeer("ridge", names),
            "mean": MeanBaseline(names),
        }
    return {
        "model": AdaptedModel(adapt_to, feature_extractor),
        "ridge": LnWherePositive(lambda part, log: OnChannels(RidgeBaseline(part, log)), names),
        "partial least squares": LnWherePositive(lambda part, log: OnChannels(ChannelPeer("pls", part, log)), names),
        "mean": MeanBaseline(names),
    }


def adapter_of(encoder, units, model_arguments, data, training) -> Callable:
    """The function that adapts a copy of the encoder to some labelled spectra, by the method of the command line."""
    from transformers import set_seed

    from finetuning_xrf import carve_validation

    def adapt_to(drawn):
        import numpy as np

        set_seed(data.seed)
        fitted, stopping = drawn, None
        if trains(training) and training.patience > 0 and drawn.groups is not None and len(set(drawn.groups)) > 1:
            aside = carve_validation(drawn.groups, data.validation_fraction, data.seed)
            fitted, stopping = drawn.select(np.flatnonzero(~aside)), drawn.select(np.flatnonzero(aside))
        spectra = Spectra(drawn, fitted, stopping, {})
        model = start_model(encoder, spectra, units, model_arguments, data.targets, training, data.seed)
        if trains(training):
            with tempfile.TemporaryDirectory() as folder:
                fine_tune(model, spectra, training, data.seed, Path(folder) / "checkpoints", None)
        return model

    return adapt_to


def run_on_table(model_arguments, data, options, training, output) -> None:
    """Adapt the encoder to a table, validate it out of groups, and write model, predictions and report."""
    import numpy as np

    from evaluation_xrf import regression_metric
    from files_xrf import write_json, write_text
    from finetuning_xrf import MIN_LABELS, VALID_RANGES, Answers, check_labels, markdown_table, result_rows
    from laboratory_xrf import choose_splits, leakage_warnings
    from protocols_xrf import measurement_only, run_protocol
    from report_xrf import draw_table, table_report, write_predictions, write_report
    from training_xrf import provenance

    table = read_table(data, options)
    labelled = table.labelled
    check_labels(table.data.targets[labelled], table.data.target_names, "Validation", MIN_LABELS + 1)
    validation = choose_splits(table, options.validation, data.seed)
    warnings = [*table.warnings, *validation.warnings, *leakage_warnings(table, validation.splits)]
    print(f"Validation: {validation.description}.")
    for warning in warnings:
        print(f"Beware: {warning}")

    adapt_to = feature_extractor = None
    if table.feature_names is None:
        encoder, feature_extractor = load_base(model_arguments)
        adapt_to = adapter_of(encoder, table.target_units, model_arguments, data, training)
    elif training.method != "auto":
        raise ValueError(f"The method {training.method} needs spectra; a table of other numbers is fitted by auto.")
    methods = table_methods(table, adapt_to, feature_extractor)
    ranges = [VALID_RANGES.get(unit, (-np.inf, np.inf)) for unit in table.target_units]
    lowest, highest = np.array(ranges).T
    own, results, metric = None, [], regression_metric(table.data.target_names)
    for name, method in methods.items():
        print(f"Fitting {name} {len(validation.splits)} times", flush=True)
        predictions = run_protocol(method, validation.splits, table.data)
        own = own or predictions
        values, references = predictions.values.clip(lowest, highest), table.data.targets[predictions.rows]
        shown = training.method if method is methods.get("model") else name
        results += result_rows(metric, "out of group", shown, values, references, table, predictions.intervals)

    learnt = validation.splits[0].training if len(validation.splits) == 1 else labelled
    method, measurements = next(iter(methods.values())), [measurement_only(s) for s in table.data.spectra]
    groups = None if table.data.groups is None else table.data.groups[learnt]
    method.fit([measurements[row] for row in learnt], table.data.targets[learnt], groups)
    said = method.answers(measurements) if adapt_to else Answers(*method.predict(measurements))
    honest = replace_rows(said, own, own.rows)
    said = replace_rows(said, own, np.intersect1d(own.rows, labelled))  # the others are best known to the final model

    folder = claim_folder(data, output, model_arguments, options, training)
    figures = draw_table(table, own.rows, learnt, honest.values, honest.intervals.get(0.9), folder)
    summary = {
        "method": training.method if adapt_to else "gaussian process",
        "model": adapt_to and (model_arguments.base_model_id or model_arguments.model_name_or_path),
        "dataset": data.dataset,
        "num_labels": len(learnt),
        "seed": data.seed,
        "validation": validation.description,
        "warnings": warnings,
        "stopping_labels": None,
        "step": None,
        "shared_groups": None,
        **provenance(),
        "results": results,
    }
    if adapt_to:
        parity = [Path(drawn[0].path).name for drawn in figures]
        save_model(folder, method.model_, feature_extractor, summary, parity, model_arguments, training, output)
    tested = np.intersect1d(own.rows, labelled)
    write_predictions(folder / "predictions.csv", table, tested, said.values, said.intervals, said.unfamiliar)
    write_json(folder / "metrics.json", summary)
    write_text(folder / "results.md", markdown_table(results) + "\n")
    commands = next_commands(table, data, options, folder)
    rows = (said.values, said.unfamiliar, tested, learnt)
    write_report(
        folder / "report.html", table_report(table, validation.description, summary, *rows, figures, commands)
    )  # last: the run is complete
    print(markdown_table(results))
    print(f"Written to {folder}: report.html, predictions.csv, metrics.json{', model/' if adapt_to else ''}")


def replace_rows(said, out_of_group, rows):
    """A copy of the final model's `Answers` of all rows in which some are those of models that had not seen them."""
    import numpy as np

    places = np.searchsorted(out_of_group.rows, rows)

    def replaced(everywhere, others):
        everywhere = everywhere.copy()
        everywhere[rows] = others[places]
        return everywhere

    intervals = {
        coverage: tuple(replaced(*ends) for ends in zip(both, out_of_group.intervals[coverage]))
        for coverage, both in said.intervals.items()
    }
    return replace(said, values=replaced(said.values, out_of_group.values), intervals=intervals)


def next_commands(table: "LaboratoryTable", data, options: TableArguments, folder: Path) -> list[tuple[str, str]]:
    """What to do with the result: a sentence and the command."""
    if table.feature_names is not None:
        targets = " ".join(map(shlex.quote, data.targets))
        command = f"python scripts/run_regression.py {shlex.quote(data.dataset)} --target {targets}"
        if options.features:
            command += " --features " + " ".join(map(shlex.quote, options.features))
        return [("Add rows without a laboratory value and run again; predictions.csv will hold them:", command)]
    command = f"python scripts/predict.py {shlex.quote(str(folder / 'model'))} new_spectra/ --output predictions.csv"
    given = {name: getattr(options, name) for name in ("column_mapping", "gain_kev", "offset_kev", "tube_kv")}
    command += "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)
    return [("Predict new spectra of the same instrument, settings and kind of sample:", command)]


def load_base(model_arguments: ModelArguments):
    """The pretrained model, on a GPU where there is one, and its feature extractor; fills in the default name."""
    import torch

    from feature_extraction_xrf import XRFFeatureExtractor
    from finetuning_xrf import load_pretrained

    if model_arguments.model_name_or_path is None:
        if not DEFAULT_MODEL.is_dir():
            raise ValueError(
                f"No pretrained model lies in {DEFAULT_MODEL}; name one with --model_name_or_path, a folder or Hub id."
            )
        model_arguments.model_name_or_path = str(DEFAULT_MODEL)
    base, revision = model_arguments.model_name_or_path, model_arguments.model_revision
    encoder = load_pretrained(base, revision).to("cuda" if torch.cuda.is_available() else "cpu")
    return encoder, XRFFeatureExtractor.from_pretrained(base, revision=revision)


def main(argv: list[str] | None = None):
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--dataset")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TableArguments, MethodArguments, OutputArguments),
        description=__doc__.splitlines()[0],
    )
    model_arguments, data, options, training, output = parser.parse_args_into_dataclasses(
        arguments, look_for_args_file=False
    )
    check_arguments(model_arguments, data, training, output)
    if training.learning_rate is None:
        training.learning_rate = DEFAULT_LEARNING_RATES.get(training.method)

    if Path(data.dataset).is_file():
        run_on_table(model_arguments, data, options, training, output)
    elif Path(data.dataset).suffix.lower() in TABLE_SUFFIXES:
        raise ValueError(f"There is no table {data.dataset}; check the path.")
    else:
        from transformers import set_seed

        encoder, feature_extractor = load_base(model_arguments)
        set_seed(data.seed)
        run_on_corpus(model_arguments, data, training, output, encoder, feature_extractor)


if __name__ == "__main__":
    run(main)
