"""Predict concentrations, or whatever a model was fine-tuned for, from files of spectra into one table.

Instrument files, folders (searched to the bottom), NumPy archives, CSV and Parquet tables, in any mixture:

    python scripts/predict.py runs/demo/caco3/model core_7/ core_8.parquet --output predictions.csv

A model or adapter from the Hub, a wide table whose columns have names of their own, unusable spectra left out:

    python scripts/predict.py org/xrf-caco3 scan.csv --column_mapping columns.json --on_error skip --output out.parquet

The output has one row per spectrum: `file` and `index` (its place in the file, from 0), every identifier the input
holds (what has no column of its own stands as JSON in `metadata`, labels in `reference_values`), and for each target
`<target>`, `<target>_unit` and, with a Gaussian head, `<target>_sd`. With `--on_error skip` `<output>.rejected.csv`
lists what could not be used, and why. Spectra are streamed, so memory does not grow with their number, and the output
appears only when it is complete.
"""

from dataclasses import dataclass, field

from transformers.hf_argparser import HfArgumentParser

from command_line_xrf import run
from inference_xrf import (
    InferenceArguments,
    Item,
    batches,
    extract_features,
    fill_in,
    find_inputs,
    identifier_columns,
    identifier_fields,
    load_model,
    output_paths,
    predict,
    read_items,
    rejection_table,
    table_writer,
)


@dataclass
class PredictionArguments(InferenceArguments):
    output: str = field(metadata={"help": "table to write, .csv or .parquet"})


def main():
    parser = HfArgumentParser(PredictionArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model or an adapter")
    parser.add_argument("inputs", nargs="+", help="files and folders of spectra")
    arguments, positional = parser.parse_args_into_dataclasses()
    output, rejected = output_paths(arguments, (".csv", ".parquet"))

    from tqdm import tqdm

    sources, mapping = find_inputs(positional.inputs, arguments.column_mapping, (output, rejected))
    model, feature_extractor = load_model(positional.model, arguments.device)
    schema = output_schema(model.config)

    num_predicted = 0
    with (
        table_writer(output, schema) as write,
        rejection_table(rejected, arguments.on_error) as rejections,
        tqdm(unit=" spectra", disable=None) as progress,
    ):
        items = (fill_in(item, arguments) for item in read_items(sources, mapping, rejections))
        for batch in batches(items, arguments.batch_size):
            batch, features = extract_features(feature_extractor, batch, rejections)
            if batch:
                write(result_table(batch, predict(model, features), model.config, schema))
                num_predicted += len(batch)
                progress.update(len(batch))
        if num_predicted == 0:
            raise ValueError(f"None of {rejections.number} spectra could be predicted; the first: {rejections.first}")
    print(f"{num_predicted} spectra predicted: {output}")
    if rejections.number:
        print(f"{rejections.number} rejected: {rejected}")


def output_schema(config):
    """The columns of the output."""
    import pyarrow as pa

    fields = identifier_fields()
    for target in config.target_names:
        fields += [(target, pa.float32()), (f"{target}_unit", pa.string())]
        fields += [(f"{target}_sd", pa.float32())] if config.regression_loss == "gaussian" else []
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"The output would have two columns {name}; rename the target in the model's config.json."
            )
    return pa.schema(fields)


def result_table(batch: list[Item], predictions: dict, config, schema):
    """The rows of a batch as a `pyarrow.Table`."""
    import pyarrow as pa

    columns = identifier_columns(batch)
    for column, (target, unit) in enumerate(zip(config.target_names, config.target_units)):
        columns[f"{target}_unit"] = [unit] * len(batch)
        for suffix, values in predictions.items():
            columns[target + suffix] = values[:, column]
    return pa.table(columns, schema=schema)


if __name__ == "__main__":
    run(main)
