"""Explain a model's predictions: which energies, and which element lines, escape and sum peaks, drive one target.

The inputs are what scripts/predict.py takes, one split of a corpus included:

    python scripts/explain.py runs/demo/caco3/model core_7/ --target CaCO3 --output_dir explained
    python scripts/explain.py org/xrf-caco3 corpus/data/test-00000.parquet --target CaCO3 --output_dir explained

Faster and coarser, and against the mean spectrum instead of each spectrum's own continuum:

    python scripts/explain.py runs/demo/caco3/model core_7/ --target CaCO3 --output_dir explained --max_spectra 64 \
        --steps 8 --baseline mean

Integrated gradients (Sundararajan, Taly & Yan 2017) of the standardised target, averaged over spectra spread evenly
over the inputs. The folder appears when all is done: `attribution.csv` has a row per channel (energy_kev, mean_counts,
attribution, absolute_attribution), `lines.csv` a row per line (element, line, energy_kev, attribution, share of the
absolute attribution), `attribution.png` draws both; the first ten lines are printed. With `--on_error skip`
`rejected.csv` lists what could not be used.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from command_line_xrf import HfArgumentParser, run
from files_xrf import atomic_folder, check_replaceable
from inference_xrf import (
    InferenceArguments,
    Item,
    batches,
    feature_batches,
    fill_in,
    find_inputs,
    load_model,
    read_items,
    rejection_table,
)

OUTPUTS = {"attribution.csv", "lines.csv", "attribution.png", "rejected.csv"}


@dataclass(kw_only=True)
class ExplanationArguments(InferenceArguments):
    target: str = field(metadata={"help": "the target to explain, by its name in the model"})
    output_dir: str = field(metadata={"help": "folder to write"})
    max_spectra: int = field(default=256, metadata={"help": "spectra to average over, spread evenly over the inputs"})
    steps: int = field(default=32, metadata={"help": "points on the way from baseline to spectrum"})
    baseline: Literal["continuum", "mean"] = field(
        default="continuum",
        metadata={"help": "compare each spectrum with itself without peaks, or with the mean of all"},
    )
    batch_size: int = field(default=16, metadata={"help": "spectra that go through the model together"})

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_spectra", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}; leave it out.")


def main():
    parser = HfArgumentParser(ExplanationArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model or an adapter")
    parser.add_argument("inputs", nargs="+", help="files and folders of spectra")
    arguments, positional = parser.parse_args_into_dataclasses()
    output_dir = check_replaceable(arguments.output_dir, OUTPUTS, arguments.overwrite)
    sources, mapping = find_inputs(positional.inputs, arguments.column_mapping, (output_dir,))
    model, feature_extractor = load_model(positional.model, arguments.device)

    from attribution_xrf import column_of, explain, markdown_table, write_explanation

    unit = unit_of(model.config, column_of(model.config, arguments.target))
    with atomic_folder(output_dir) as folder:
        with rejection_table(folder / "rejected.csv", arguments.on_error) as rejections:
            items = (fill_in(item, arguments) for item in read_items(sources, mapping, rejections))
            usable = feature_batches(batches(items), feature_extractor, rejections)
            items = (item for batch, _ in usable for item in batch)
            spectra = [item.spectrum for item in spread_evenly(items, arguments.max_spectra)]
        explanation = explain(
            model,
            feature_extractor,
            spectra,
            arguments.target,
            arguments.baseline,
            arguments.steps,
            arguments.batch_size,
        )
        write_explanation(folder, explanation, f"mean of {len(spectra)} spectra")
    print(f"{arguments.target} of {len(spectra)} spectra against the {arguments.baseline}, in units of {unit}:\n")
    print(markdown_table(explanation.lines))
    missed = explanation.attribution.sum() - explanation.difference
    print(
        f"\nThe predictions lie {explanation.difference:+.3f} from those of the baselines; the attributions of all "
        f"channels miss this by {missed:+.1g}, more steps by less."
    )
    print(f"Written: {output_dir}")
    if rejections.number:
        print(f"{rejections.number} rejected: {output_dir / 'rejected.csv'}")


def unit_of(config, column: int) -> str:
    """What an attribution of 1 is worth, such as `"21.3 wt%"` or, for a logarithmic target, `"a factor of 1.8"`."""
    import math

    std = config.target_std[column]
    if config.target_transform[column] == "log":
        return f"a factor of {math.exp(std):.3g}"
    return f"{std:.3g} {config.target_units[column]}".strip()


def spread_evenly(items: Iterator[Item], number: int) -> list[Item]:
    """At most `number` items, spread evenly over a stream of unknown length: every k-th is kept, k doubling whenever
    the kept ones become too many."""
    kept, stride = [], 1
    for index, item in enumerate(items):
        if index % stride == 0:
            kept.append(item)
        if len(kept) > 2 * number:
            kept, stride = kept[::2], 2 * stride
    last = len(kept) - 1
    places = range(min(number, len(kept)))
    return [kept[round(place * last / max(len(places) - 1, 1))] for place in places]


if __name__ == "__main__":
    run(main)
