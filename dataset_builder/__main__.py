"""Build corpora from the command line.

python -m dataset_builder simulate --num-spectra 20000 --num-cores 100 --seed 0 --output corpora/simulated
python -m dataset_builder build measurements/ --output corpora/measured --core-pattern '^(.+)-\\d+$'
python -m dataset_builder push corpora/measured user/measured-xrf
"""

import argparse
import json
from pathlib import Path

from command_line_xrf import run
from hub_xrf import push_repository

from .corpus import SUMMARY_FILE, build_corpus


def main(arguments=None) -> None:
    """Run one command."""
    args = _parser().parse_args(arguments)
    if args.command == "push":
        print(push_repository(args.folder, args.repo_id, private=args.private))
    else:
        _build(args)


def _build(args):
    if args.command == "simulate":
        source = "simulated"
        options = {"num_spectra": args.num_spectra, "num_cores": args.num_cores}
    else:
        from .readers import ColumnMapping

        source = args.source
        options = {"core_pattern": args.core_pattern}
        if args.column_mapping is not None:
            options["column_mapping"] = vars(ColumnMapping.from_json(args.column_mapping))
    folder = build_corpus(
        source,
        args.output,
        validation_fraction=args.validation_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
        num_proc=args.num_proc,
        shard_rows=args.shard_rows,
        license=args.license,
        **options,
    )
    splits = json.loads((Path(folder) / SUMMARY_FILE).read_text(encoding="utf-8"))["splits"]
    sizes = ", ".join(f"{name} {split['spectra']} ({split['groups']} groups)" for name, split in splits.items())
    print(f"{folder}: {sizes}")


def _parser():
    parser = argparse.ArgumentParser(prog="python -m dataset_builder", description="Build corpora of XRF spectra.")
    commands = parser.add_subparsers(dest="command", required=True)

    simulate = commands.add_parser("simulate", help="simulate marine sediment cores")
    simulate.add_argument("--num-spectra", type=int, default=10_000, help="spectra in all")
    simulate.add_argument("--num-cores", type=int, default=50, help="cores they are spread over")

    build = commands.add_parser("build", help="build from instrument files, folders and tables")
    build.add_argument("source", nargs="+", help="files or folders")
    build.add_argument("--column-mapping", help="JSON file that says which column of a wide table is what")
    build.add_argument("--core-pattern", help="regular expression whose first group in the sample's name is the core")

    for command in (simulate, build):
        command.add_argument("--output", required=True, help="new or empty folder")
        command.add_argument("--seed", type=int, default=0, help="of the split and the simulation")
        command.add_argument("--validation-fraction", type=float, default=0.1, help="share of the spectra")
        command.add_argument("--test-fraction", type=float, default=0.1, help="share of the spectra")
        command.add_argument("--num-proc", type=int, help="worker processes")
        command.add_argument("--shard-rows", type=int, default=20_000, help="spectra in a Parquet file")
        command.add_argument("--license", help="Hub identifier of the licence, for the card")

    push = commands.add_parser("push", help="push a corpus to the Hub, with the login of the Hub's own client")
    push.add_argument("folder", help="folder that simulate or build made")
    push.add_argument("repo_id", help="user/name of the dataset repository")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


if __name__ == "__main__":
    run(main)
