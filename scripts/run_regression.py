"""Adapt a pretrained XRF model to laboratory labels, and measure the result beside two baselines.

LoRA with 100 labels, the usual case:

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

import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

from command_line_xrf import run

if TYPE_CHECKING:
    from finetuning_xrf import LabelledSpectra

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "finetuned.md"
DEFAULT_LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}
EVALUATION_BATCH_SIZE = 256


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "pretrained repository: a folder or a Hub id"})
    model_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub id"})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id under which a local base is or will be found; adapters name it"}
    )
    pooling: Literal["mean", "cls"] = field(
        default="mean", metadata={"help": "embedding: the mean over the measured patches, or the CLS token"}
    )
    regression_loss: Literal["mse", "gaussian"] = field(
        default="mse", metadata={"help": "predict one value, or a mean and a standard deviation"}
    )


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "corpus: a folder of Parquet files or a Hub id"})
    targets: list[str] = field(metadata={"help": "columns with laboratory values to learn"})
    target_units: list[str] | None = field(
        default=None, metadata={"help": "unit of each target; by default what the corpus says"}
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
class MethodArguments:
    method: Literal["lora", "full", "probe"] = field(
        default="lora",
        metadata={"help": "low-rank updates, all weights, or a ridge regression on the frozen embedding"},
    )
    lora_rank: int = field(default=8, metadata={"help": "lora: rank of the updates"})
    lora_alpha: float = field(default=16, metadata={"help": "lora: the updates are scaled by alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: share of inputs an update does not see"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
        metadata={"help": "lora: linear layers to update; by default all but patch_embeddings"},
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
    output_dir: str = field(metadata={"help": "new or empty folder"})
    trackers: Literal["tensorboard", "none"] = field(default="tensorboard", metadata={"help": "where curves go"})
    logging_dir: str | None = field(default=None, metadata={"help": "of TensorBoard; by default output_dir/logs"})
    license: str = field(default="apache-2.0", metadata={"help": "licence of the result, a Hub identifier"})
    push_to_hub: bool = field(default=False, metadata={"help": "push model/ to the Hub"})
    hub_model_id: str | None = field(default=None, metadata={"help": "push: name of the repository, org/name"})
    hub_private: bool = field(default=False, metadata={"help": "push: make a new repository private"})


def check_arguments(model: ModelArguments, data: DataArguments, training: MethodArguments, output: OutputArguments):
    """Raise `ValueError` for options that are out of range or do not fit together, before anything is loaded."""
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
    local = Path(model.model_name_or_path).is_dir() and model.base_model_id is None
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


def start_model(encoder, spectra: Spectra, units: list[str], model: ModelArguments, targets, training):
    """A new model around the pretrained encoder, whose head is a ridge regression on the embeddings of the labelled
    spectra: the result of the method `probe`, and where the others start (Kumar et al. 2022, arXiv 2202.10054)."""
    import torch

    import finetuning_xrf

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


def main(argv: list[str] | None = None):
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, MethodArguments, OutputArguments), description=__doc__.splitlines()[0]
    )
    model_arguments, data, training, output = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_arguments(model_arguments, data, training, output)
    if training.learning_rate is None:
        training.learning_rate = DEFAULT_LEARNING_RATES.get(training.method)

    from transformers import set_seed

    from evaluation_xrf import MeanBaseline, RidgeBaseline
    from feature_extraction_xrf import XRFFeatureExtractor
    from figures_xrf import plot_training_curves
    from files_xrf import claim_run_folder, write_json, write_text
    from finetuning_xrf import load_encoder, markdown_table, render_card, shared_groups
    from hub_xrf import push_repository, save_adapter_repository, save_repository
    from training_xrf import provenance

    base, revision = model_arguments.model_name_or_path, model_arguments.model_revision
    encoder = load_encoder(base, revision)
    feature_extractor = XRFFeatureExtractor.from_pretrained(base, revision=revision)
    early_stopping = training.method != "probe" and training.patience > 0
    spectra, units = load_spectra(data, early_stopping, feature_extractor)
    baselines = {
        "mean": MeanBaseline(data.targets).fit(spectra.drawn.counts, spectra.drawn.labels),
        "ridge": RidgeBaseline(data.targets).fit(spectra.drawn.counts, spectra.drawn.labels, spectra.drawn.groups),
    }

    set_seed(data.seed)
    model = start_model(encoder, spectra, units, model_arguments, data.targets, training)
    options = asdict(model_arguments) | asdict(data) | asdict(training) | asdict(output)
    folder = claim_run_folder(output.output_dir, "run_regression.py", options)
    step = None
    if training.method != "probe":
        logging_dir = None if output.trackers == "none" else Path(output.logging_dir or folder / "logs")
        history, step = fine_tune(model, spectra, training, data.seed, folder / "checkpoints", logging_dir)
        plot_training_curves(folder / "training.png", history)

    results, figures = measure(model, training.method, baselines, spectra, folder)
    set_aside = spectra.fitted is not spectra.drawn
    summary = {
        "method": training.method,
        "model": model_arguments.base_model_id or base,
        "dataset": data.dataset,
        "num_labels": len(spectra.drawn),
        "seed": data.seed,
        "stopping_labels": {"number": len(spectra.stopping), "set_aside": set_aside} if early_stopping else None,
        "step": step,
        "shared_groups": shared_groups(spectra.drawn, spectra.measured[data.test_split]),
        **provenance(),
        "results": results,
    }

    local = Path(base).is_dir()
    base_id = model_arguments.base_model_id or (None if local else base)
    card = render_card(CARD_TEMPLATE, summary, model.config, asdict(training), base_id, output.license, figures)
    if training.method == "lora":
        adapter_config = model.peft_config["default"]
        adapter_config.base_model_name_or_path = base_id or str(Path(base).resolve())
        adapter_config.revision = None if local else revision
        save_adapter_repository(folder / "model", model, feature_extractor, card)
    else:
        save_repository(folder / "model", model, feature_extractor, card)
    for figure in figures:
        shutil.copyfile(folder / figure, folder / "model" / figure)

    write_json(folder / "metrics.json", summary)
    write_text(folder / "results.md", markdown_table(results) + "\n")  # last: the run is complete
    print(markdown_table(results))
    print(f"Written to {folder}: model/, metrics.json, results.md, {', '.join(figures)}")
    if output.push_to_hub:
        print(f"Pushed to {push_repository(folder / 'model', output.hub_model_id, private=output.hub_private)}")


if __name__ == "__main__":
    run(main)
