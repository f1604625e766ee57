"""Push a model, an adapter or a corpus to the Hugging Face Hub.

    hf auth login    # once; or set HF_TOKEN to a token that may write

    python scripts/push_to_hub.py runs/demo/pretraining/model org/xrf-tiny --dry_run    # lists what would go up
    python scripts/push_to_hub.py runs/demo/pretraining/model org/xrf-tiny --private
    python scripts/push_to_hub.py runs/demo/caco3/model org/xrf-tiny-caco3 --base_model_id org/xrf-tiny    # an adapter
    python scripts/push_to_hub.py runs/demo/corpus org/xrf-simulated    # a folder with data/*.parquet: a dataset

Everything in the folder goes up in one commit, except hidden and temporary files and training checkpoints; pushing
again updates the repository. A model or adapter without a card (README.md) gets one rendered from `model_cards/`.
"""

import argparse
import json
from pathlib import Path

from command_line_xrf import run

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "without_results.md"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of a model, an adapter or a corpus")
    parser.add_argument("repo_id", help="the repository's name on the Hub, org/name; it is created if missing")
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="only list what would go up")
    parser.add_argument(
        "--base_model_id", "--base-model-id", help="Hub name of an adapter's base, where it was trained on a folder"
    )
    parser.add_argument(
        "--card_template", "--card-template", type=Path, help="Jinja template of the card, for a folder without one"
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    from hub_xrf import CARD, missing_files, push_repository, repository_content, repository_kind  # slow to import

    folder = arguments.folder
    kind = repository_kind(folder)
    card = None
    if missing_files(folder) == [CARD] and kind != "dataset":
        card = render_card(folder, kind, arguments.repo_id, arguments.base_model_id, arguments.card_template)
    elif arguments.card_template is not None and (folder / CARD).is_file():
        raise ValueError(f"{folder} has a card already; leave out --card_template, or delete {folder / CARD}.")

    content = repository_content(folder, card, arguments.base_model_id)
    for path, source in content.items():
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        print(f"{size:>15,} bytes  {path}")
    if arguments.dry_run:
        print(f"Dry run: this {kind} would go to {arguments.repo_id}; nothing was uploaded.")
        return
    url = push_repository(
        folder, arguments.repo_id, private=arguments.private, card=card, base_model_id=arguments.base_model_id
    )
    print(f"Pushed this {kind} to {url}")


def render_card(folder: Path, kind: str, repo_id: str, base_model_id: str | None, template: Path | None) -> str:
    """The card of a model or an adapter that has none, with as much as its files tell: no measured results."""
    from huggingface_hub import ModelCard, ModelCardData

    template = template or CARD_TEMPLATE
    if not template.is_file():
        raise ValueError(f"There is no card template {template}; templates lie in {CARD_TEMPLATE.parent}.")
    task = folder / ("task/config.json" if kind == "adapter" else "config.json")
    config = json.loads(task.read_text(encoding="utf-8"))
    if kind == "adapter" and base_model_id is None:
        base_model_id = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="tabular-regression" if config.get("target_names") else "feature-extraction",
        tags=["xrf", "x-ray-fluorescence", "geochemistry"],
        base_model=base_model_id,
    )
    return str(ModelCard.from_template(card_data, template_path=template, repo_id=repo_id, kind=kind, config=config))


if __name__ == "__main__":
    run(main)
