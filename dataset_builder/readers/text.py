"""Text of instrument files: bounded reading, the encodings and line ends that occur, and strict numbers."""

import os
import re
import stat
from pathlib import Path

from ..spectrum import SpectrumFileError

MAX_FILE_BYTES = 256 * 2**20
"""No instrument writes a measurement this large; a larger file is refused before it fills the memory."""

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d{1,3})?")


def read_bytes(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The whole file.

    Raises:
        SpectrumFileError: it cannot be opened, is empty, or is larger than `max_bytes`.
    """
    try:
        with open(path, "rb") as file:
            # Asked for many bytes `read` reserves them all, so it is asked for those that are there.
            status = os.fstat(file.fileno())
            num_bytes = status.st_size if stat.S_ISREG(status.st_mode) else max_bytes
            content = file.read(min(num_bytes, max_bytes) + 1)
    except OSError as error:
        raise SpectrumFileError(path, f"the file cannot be read ({error.strerror}).") from None
    if not content:
        raise SpectrumFileError(path, "the file is empty; copy it again.")
    if len(content) > max_bytes:
        raise SpectrumFileError(
            path, f"a file of one measurement must not exceed {max_bytes // 2**20} MiB; this one is larger."
        )
    return content


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The whole file as text: UTF-16 or UTF-8 by its byte order mark, else UTF-8 where valid, else Windows-1252.

    Raises:
        SpectrumFileError: as `read_bytes`.
    """
    return decode(read_bytes(path, max_bytes))


def decode(content: bytes) -> str:
    """Bytes as text; never fails, because a wrong character in a comment must not cost the spectrum."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace").lstrip("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def split_lines(text: str) -> list[str]:
    """Lines ending with LF, CRLF or a bare CR; `str.splitlines` would also cut at form feeds and other separators."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def parse_number(text) -> float | None:
    """The number a text is, a decimal comma allowed; `None` for anything else (words, NaN, infinity, `1_000`)."""
    text = str(text).strip().strip('"').strip()
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text.replace(",", "."))
    return value if abs(value) < 1e300 else None
