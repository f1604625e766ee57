"""How every script meets bad input: one sentence on standard error, exit code 2, no token in sight."""

import os
import re
import sys
from collections.abc import Callable

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; what the user can mend is printed as one sentence and exits with code 2."""
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {without_tokens(sentence(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def sentence(error: Exception) -> str:
    """The one line a user should read of an error."""
    if isinstance(error, HfHubHTTPError):
        return _hub_sentence(error)
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__  # the strict configuration wraps our own sentence
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def without_tokens(text: str) -> str:
    """`text` with every Hub token blanked, be it recognised by its form or known from the environment."""
    for secret in filter(None, (os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"))):
        text = text.replace(secret, "<token>")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}\b", "<token>", text)


def _hub_sentence(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    hub, details = f"The Hub at {constants.ENDPOINT}", " ".join(str(error).split())
    if status in (401, 403):
        return (
            f"{hub} refused the token ({status}); log in with `hf auth login`, or set HF_TOKEN to one that may do this."
        )
    if status == 404:
        return f"{hub} has no such repository, or the token may not see it (404); check the name: {details}"
    return f"{hub} failed ({status}) even after retries; try again later: {details}"
