"""A lock on a run folder: one process writes a run, and the lock dies with that process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from tenet.errors import RunFolderError
from tenet.ledger._file import explain

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Held from construction to `close`. RunFolderError, naming the process, if another holds it.

    A file of its own, never the SQLite file: closing a second handle of that one would silently
    drop the locks that SQLite itself holds on it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "run.lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain(path, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 20).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise RunFolderError(
                f"in use by process {holder}",
                where=str(folder),
                fix="wait for it, stop it, or name another run",
            ) from error
        os.ftruncate(self._fd, 0)
        # Only words for the next process's error: on a full disk the lock is held all the same.
        with contextlib.suppress(OSError):
            os.write(self._fd, f"{os.getpid()}\n".encode())
        _held.add(self)

    def close(self) -> None:
        """May be called twice. The file stays: without it two processes could lock two files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock at this moment."""
    try:
        fd = os.open(folder / "run.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # To try a lock is to hold it for a moment, in which a run that starts would be turned away: so a lock whose
        # last holder is dead is not tried.
        os.kill(int(os.read(fd, 20)), 0)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    finally:
        os.close(fd)
    return False


def _forget() -> None:
    """In a forked child: else a worker that outlives a killed driver would keep its run locked."""
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_forget)


def make_folder(folder: Path) -> None:
    """Creates the folder and its parents. RunFolderError if a file is in the way; LedgerError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError("a file is in the way", where=str(folder), fix="a folder") from error
    except OSError as error:
        raise explain(folder, error) from error
