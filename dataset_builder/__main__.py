"""The command `xrf-data`, also `python -m dataset_builder`: look into spectra files and build corpora.

xrf-data inspect measurement.pdz --plot measurement.png
xrf-data build measurements/ --output corpora/measured --core-pattern '^(.+)-\\d+$'
xrf-data build core_scanner/ --output corpora/cores --gain-kev 0.02 --offset-kev 0 --anode Rh
xrf-data build real_mixed --data spectra/ --output corpora/mixed --num-proc 2
xrf-data simulate --num-spectra 20000 --num-cores 100 --seed 0 --output corpora/simulated
xrf-data card corpora/measured --license cc-by-4.0
xrf-data push corpora/measured user/measured-xrf
"""

import argparse
import dataclasses
import json
from pathlib import Path

from command_line_xrf import run
from files_xrf import write_text
from hub_xrf import push_repository

from .builder import REJECTED_FILE
from .card import SUMMARY_FILE, render_card
from .corpus import build_corpus, simulated_recipe
from .recipe import Recipe, packaged_recipes
from .sources import FILL_FIELDS


def main(arguments=None) -> None:
    """Run one command."""
    args = _parser().parse_args(arguments)
    args.run(args)


def command_line() -> None:
    """The installed command: `main`, with errors as one sentence."""
    run(main)


def _inspect(args):
    from .inspection import inspect_file

    print(inspect_file(args.file, plot=args.plot, column_mapping=_column_mapping(args)))


def _build(args):
    is_recipe = len(args.source) == 1 and (
        Path(args.source[0]).suffix in (".yaml", ".yml") or args.source[0] in packaged_recipes()
    )
    if is_recipe and not Path(args.source[0]).is_dir():
        recipe = Recipe.from_yaml(args.source[0])
        given = [name for name in ("column_mapping", "core_pattern", *FILL_FIELDS) if getattr(args, name) is not None]
        if given:
            raise ValueError(f"A recipe has its own options; write {', '.join(given)} into it.")
        changes = {name: getattr(args, name) for name in ("seed", "validation_fraction", "test_fraction", "license")}
        recipe = dataclasses.replace(recipe, **{name: value for name, value in changes.items() if value is not None})
        folder = build_corpus(recipe=recipe, data_root=args.data, **_of_build(args))
    else:
        options = {"core_pattern": args.core_pattern, "overwrite": args.overwrite}
        options["fill"] = {name: getattr(args, name) for name in FILL_FIELDS if getattr(args, name) is not None}
        mapping = _column_mapping(args)
        if mapping is not None:
            options["column_mapping"] = dataclasses.asdict(mapping)
        folder = build_corpus(args.source, data_root=args.data, **options, **_of_split(args), **_of_build(args))
    _report(folder)


def _simulate(args):
    sizes = {"num_spectra": args.num_spectra, "num_cores": args.num_cores}
    options = {name: value for name in ("samples", "instruments") if (value := getattr(args, name)) is not None}
    recipe = simulated_recipe(**sizes, **options, **_of_split(args))
    _report(build_corpus(recipe=recipe, **_of_build(args)))


def _card(args):
    write_text(Path(args.folder) / "README.md", render_card(args.folder, args.license))
    print(Path(args.folder) / "README.md")


def _push(args):
    print(push_repository(args.folder, args.repo_id, private=args.private))


def _column_mapping(args):
    if args.column_mapping is None:
        return None
    from .readers import ColumnMapping

    return ColumnMapping.from_json(args.column_mapping)


def _of_split(args) -> dict:
    names = ("seed", "validation_fraction", "test_fraction", "license")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _of_build(args) -> dict:
    options = {name: getattr(args, name) for name in ("num_proc", "shard_rows")}
    return {"output_dir": args.output, "on_error": getattr(args, "on_error", "skip"), **options}


def _report(folder):
    summary = json.loads((Path(folder) / SUMMARY_FILE).read_text(encoding="utf-8"))
    sizes = [f"{name} {split['spectra']} ({split['groups']} groups)" for name, split in summary["splits"].items()]
    print(f"{folder}: {', '.join(sizes)}")
    if summary["duplicates"]:
        print(f"{summary['duplicates']} exact duplicates were left out")
    if summary["rejected"]:
        print(f"{summary['rejected']} files or spectra cannot be used: {Path(folder) / REJECTED_FILE} says why")


def _parser():
    parser = argparse.ArgumentParser(prog="xrf-data", description="Look into XRF spectra files and build corpora.")
    commands = parser.add_subparsers(dest="command", required=True)

    inspect = commands.add_parser("inspect", help="say what a file is and holds")
    inspect.add_argument("file", help="spectra file")
    inspect.add_argument("--plot", metavar="PNG", help="also draw the spectra with element lines")
    inspect.set_defaults(run=_inspect)

    build = commands.add_parser("build", help="build a corpus from files, folders and tables, or by a recipe")
    recipes = ", ".join(packaged_recipes())
    build.add_argument("source", nargs="+", help=f"files or folders; or a recipe: a YAML file, {recipes}")
    build.add_argument("--data", help="folder that relative paths start from")
    for command in (inspect, build):
        command.add_argument("--column-mapping", help="JSON file that says which column of a wide table is what")
    build.add_argument("--core-pattern", help="regular expression whose first group in the sample's name is the core")
    build.add_argument("--on-error", choices=["skip", "raise"], default="skip", help="for what cannot be used")
    build.add_argument("--overwrite", action="store_true", help="the following also replace what a file states")
    for name, kind in FILL_FIELDS.items():
        kind = str if kind is str else float
        build.add_argument(f"--{name.replace('_', '-')}", type=kind, help="for files that leave it open")
    build.set_defaults(run=_build)

    simulate = commands.add_parser("simulate", help="simulate a corpus")
    simulate.add_argument("--num-spectra", type=int, default=10_000, help="spectra in all")
    simulate.add_argument("--num-cores", type=int, default=50, help="cores or sample series they are spread over")
    simulate.add_argument("--samples", nargs="+", help="sample models; marine_sediment if not given")
    simulate.add_argument("--instruments", nargs="+", help="instruments, or random; avaatech_10kv if not given")
    simulate.set_defaults(run=_simulate)

    for command in (simulate, build):
        command.add_argument("--output", required=True, help="new or empty folder")
        command.add_argument("--seed", type=int, help="of the split and of `simulate` (default 0)")
        command.add_argument("--validation-fraction", type=float, help="share of the spectra (default 0.1)")
        command.add_argument("--test-fraction", type=float, help="share of the spectra (default 0.1)")
        command.add_argument("--num-proc", type=int, help="worker processes")
        command.add_argument("--shard-rows", type=int, default=20_000, help="spectra in a Parquet file")
        command.add_argument("--license", help="Hub identifier of the licence, for the card")

    card = commands.add_parser("card", help="write the dataset card of a corpus anew")
    card.add_argument("folder", help="corpus")
    card.add_argument("--license", help="Hub identifier of the licence")
    card.set_defaults(run=_card)

    push = commands.add_parser("push", help="push a corpus to the Hub, with the login of the Hub's own client")
    push.add_argument("folder", help="folder that simulate or build made")
    push.add_argument("repo_id", help="user/name of the dataset repository")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.set_defaults(run=_push)
    return parser


if __name__ == "__main__":
    command_line()
