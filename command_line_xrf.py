"""How every script reads its arguments, at once, and meets bad input: one sentence on standard error, exit code 2, no
token in sight."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that the installed client uses; a server that cannot be reached raises it
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    StrictDataclassError,
)


def _hf_argparser():
    """The module `transformers.hf_argparser` alone: it needs nothing else of transformers, whose import takes longer
    than a `--help` should."""
    name = "transformers.hf_argparser"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("transformers")
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).with_name("hf_argparser.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_hf_argparser_alone = _hf_argparser()
HfArg, HfArgumentParser = _hf_argparser_alone.HfArg, _hf_argparser_alone.HfArgumentParser


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; what the user can mend is printed as one sentence and exits with code 2."""
    try:
        main()
    except (ValueError, OSError, HTTPError, StrictDataclassError) as error:
        print(f"error: {without_tokens(sentence(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def sentence(error: Exception) -> str:
    """The one line a user should read of an error."""
    hub_error = _hub_error(error)
    if hub_error is not None:
        return _hub_sentence(hub_error)
    if isinstance(error, HTTPError):
        return f"The Hub at {constants.ENDPOINT} cannot be reached ({error}); check the connection and HF_ENDPOINT."
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__  # the strict configuration wraps our own sentence
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def without_tokens(text: str) -> str:
    """`text` with every Hub token blanked, be it recognised by its form or the one in use."""
    if token := get_token():
        text = text.replace(token, "<token>")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}\b", "<token>", text)


def _hub_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer that `error` is or, as transformers and huggingface_hub wrap it, comes from."""
    while isinstance(error, OSError) and not isinstance(error, HfHubHTTPError):
        cause = error.__cause__
        error = cause if isinstance(cause, (HfHubHTTPError, LocalEntryNotFoundError)) else None
    return error if isinstance(error, HfHubHTTPError) else None


def _hub_sentence(error: HfHubHTTPError) -> str:
    hub, status = f"The Hub at {constants.ENDPOINT}", error.response.status_code
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        path = str(error.response.url).removeprefix(constants.ENDPOINT).lstrip("/")
        name = re.match(r"(?:api/)?(?:models/|datasets/|spaces/)?([^/?]+/[^/?]+)", path)
        return f"{hub} has no repository {name[1] if name else path}, or the token may not see it; check the name."
    details = " ".join((error.server_message or str(error)).split())
    if status in (401, 403):
        remedy = "log in with `hf auth login`, or set HF_TOKEN to a token that may do this"
        return f"{hub} refused the token ({status}: {details}); {remedy}."
    if status == 404:
        return f"{hub} has not what was asked for ({details}); check the names of the file and the revision."
    return f"{hub} failed ({status}: {details}); try again later."
