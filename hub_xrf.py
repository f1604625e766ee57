"""Hub repositories of models and adapters: what they hold, how they are written and pushed."""

from pathlib import Path

import configuration_xrf
import feature_extraction_xrf
import modeling_xrf
import pipeline_xrf
from files_xrf import atomic_folder

# The code a repository carries, so that it loads with trust_remote_code where this package is not installed.
CODE_FILES = [
    Path(module.__file__) for module in (configuration_xrf, modeling_xrf, feature_extraction_xrf, pipeline_xrf)
]


def save_repository(folder: str | Path, model, feature_extractor, card: str) -> Path:
    """Write a complete model repository: weights, configuration, feature extractor, code files and card (Markdown
    text). It takes the place of `folder` whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        feature_extractor.save_pretrained(temporary)
        for file in CODE_FILES:
            (temporary / file.name).write_bytes(file.read_bytes())
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def save_adapter_repository(folder: str | Path, peft_model, feature_extractor, card: str) -> Path:
    """Write an adapter repository: the adapter, the task's configuration in the subfolder `task` (peft keeps neither
    the targets nor their statistics, and a `config.json` at the top would make transformers take the folder for a
    whole model), the feature extractor and the card. The code files are those of the base repository."""
    with atomic_folder(folder) as temporary:
        peft_model.save_pretrained(temporary)
        peft_model.get_base_model().config.save_pretrained(temporary / "task")
        feature_extractor.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)
