"""Files and folders that appear under their name only when they are whole, and what a failing disk means."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tenet.errors import TrainingError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# safetensors and torch report a full disk as errors of their own, in words only.
_WORDS = ("No space left", "File too large", "quota exceeded", "unexpected pos", "PytorchStreamWriter failed")


@contextmanager
def whole(final: Path) -> Generator[Path]:
    """A folder to write into, which then takes the place of `final`; on any error, `final` stays as it was.

    TrainingError, in plain words, if the disk is full.
    """
    beside = final.with_name(f".{final.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        swap(beside, final)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, Exception) and full(error):
            raise explained(final, error) from None
        raise


def swap(beside: Path, final: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(beside, final)
    shutil.rmtree(old, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all; TrainingError if the disk is full."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise explained(path, error) from None


def full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk took no more."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        telling = isinstance(seen, RuntimeError | OSError) or "Safetensor" in type(seen).__name__
        if telling and any(word in str(seen) for word in _WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def explained(path: Path, error: Exception) -> TrainingError:
    """What a failed write means and what to do."""
    if full(error):
        what = "the disk is full, over its quota, or failing; earlier checkpoints stay as they were"
        return TrainingError(what, where=str(path), fix="make room and run the same command again")
    return TrainingError(f"cannot be written: {error}", where=str(path), fix="a folder on a local disk, writable")
