"""Predict concentrations, or whatever a model was fine-tuned for, from files of spectra into one table.

Instrument files, folders (searched to the bottom), NumPy archives, CSV and Parquet tables, in any mixture:

    python scripts/predict.py runs/demo/caco3/model core_7/ core_8.parquet --output predictions.csv

A model or adapter from the Hub, a wide table whose columns have names of their own, unusable spectra left out:

    python scripts/predict.py org/xrf-caco3 scan.csv --column_mapping columns.json --on_error skip --output out.parquet

The output has one row per spectrum: `file` and `index` (its place in the file, from 0), every identifier the input
holds (what has no column of its own stands as JSON in `metadata`, labels in `reference_values`), and for each target
`<target>`, `<target>_unit` and, where the model has them, `<target>_sd` and prediction intervals such as
`<target>_lower_90` and `<target>_upper_90`. A model that knows what it was adapted to adds `distance`, how far a
spectrum lies from that, and `unfamiliar`: do not trust its values for such a spectrum. With `--on_error skip`
`<output>.rejected.csv` lists what could not be used, and why. Spectra are streamed, so memory does not grow with their
number, and the output appears only when it is complete.
"""

from dataclasses import dataclass, field

from command_line_xrf import HfArgumentParser, run
from inference_xrf import (
    STANDARDLESS,
    InferenceArguments,
    XRFPredictor,
    feature_batches,
    find_inputs,
    identifier_columns,
    identifier_fields,
    output_paths,
    read_batches,
    rejection_table,
    table_writer,
    target_columns,
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

    sources, mapping = find_inputs(positional.inputs, arguments.column_mapping, (output, rejected))
    predictor = XRFPredictor(positional.model, arguments.device, arguments.batch_size)
    config = predictor.model.config
    schema = output_schema(config)

    num_predicted = 0
    with table_writer(output, schema) as write, rejection_table(rejected, arguments.on_error) as rejections:
        batches = read_batches(sources, mapping, arguments, rejections)
        for batch, features in feature_batches(batches, predictor.feature_extractor, rejections):
            write(result_table(batch, predictor.predict(features), config, schema))
            num_predicted += len(batch)
    print(f"{num_predicted} spectra predicted: {output}")
    if rejections.number:
        print(f"{rejections.number} rejected: {rejected}")
    if config.calibration == "standardless":
        print(STANDARDLESS)


def output_schema(config):
    """The columns of the output."""
    import pyarrow as pa

    fields = identifier_fields()
    for target in config.target_names:
        fields += [(target, pa.float32()), (f"{target}_unit", pa.string())]
        fields += [(column, pa.float32()) for column in target_columns(config, target)[1:]]
    if config.familiarity_threshold is not None:
        fields += [("distance", pa.float32()), ("unfamiliar", pa.bool_())]
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"The output would have two columns {name}; rename the target in the model's config.json."
            )
    return pa.schema(fields)


def result_table(batch, predictions: dict, config, schema):
    """The rows of a batch as a `pyarrow.Table`."""
    import pyarrow as pa

    units = {f"{target}_unit": [unit] * len(batch) for target, unit in zip(config.target_names, config.target_units)}
    return pa.table(identifier_columns(batch) | predictions | units, schema=schema)


if __name__ == "__main__":
    run(main)
