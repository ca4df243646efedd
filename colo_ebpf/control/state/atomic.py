# SPDX-License-Identifier: GPL-2.0-only
"""Files that have to be there after a power cut, and what could not be written of any file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from colo_ebpf.errors import ControlError

PLACE_BYTES = 4096  # a block, and a page of a file system in memory: all or nothing of it
_log = logging.getLogger(__name__)
_unwritten: dict[Path, str] = {}  # of this process: why the last try of each came to nothing


@contextlib.contextmanager
def noted(path: Path) -> Iterator[None]:
    """Around whatever changes this file: what comes of it is what `unwritten` says of the file."""
    try:
        yield
    except OSError as e:
        _unwritten[path] = e.strerror or str(e)
        raise
    _unwritten.pop(path, None)


def unwritten() -> tuple[str, ...]:
    """The files of this process that could not be changed when it was last tried, and why."""
    return tuple(f"{path}: {why}" for path, why in sorted(_unwritten.items()))


def forget(path: Path) -> None:
    """This file is not needed any more: that it cannot be written matters to nobody."""
    _unwritten.pop(path, None)


def write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace a file: after this it has the new content, whatever happens; before, the old one.
    ControlError if it cannot be written. `mode`: who may open it, less the umask.

    One process writes it. What a crash leaves beside it is used by the next try.
    """
    made = path.with_name(f".{path.name}.new")
    try:
        with noted(path):
            try:
                with open(
                    made, "wb", opener=lambda name, flags: os.open(name, flags, mode)
                ) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                made.replace(path)
                sync_directory(path.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    made.unlink()
                raise
    except OSError as e:
        raise ControlError(f"cannot write {path}: {e.strerror}") from e


def overwrite(path: Path, data: bytes) -> None:
    """The same for a file that has this length already: it needs no room on the file system. At
    most 512 bytes, which a disk writes all or none of. ControlError if it cannot be written."""
    try:
        if path.stat().st_size == len(data):
            with noted(path):
                _write_at_once(path, data)
            return
    except FileNotFoundError:
        pass
    except OSError as e:
        raise ControlError(f"cannot write {path}: {e.strerror}") from e
    write(path, data)


def _write_at_once(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
    try:
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


class RetriedFile:
    """A file that its owner goes on without if it cannot be written: the newest content is kept
    until it can be. `loss` is what that costs, for the log."""

    def __init__(self, path: Path, loss: str) -> None:
        self._path, self._loss = path, loss
        self._data: bytes | None = None
        self._written: bytes | None = None
        self._failed = False
        self._writes = threading.Lock()

    @property
    def unwritten(self) -> bool:
        """It has not been written."""
        return self._data is not self._written

    def keep(self, data: bytes) -> None:
        """`overwrite` it, now if possible. Never raises, and waits for no other thread."""
        self._data = data
        self.rewrite()

    def rewrite(self) -> None:
        """Try again, from any thread: a broken disk may take long to say so."""
        while (data := self._data) is not self._written and self._writes.acquire(blocking=False):
            assert data is not None
            try:
                if not self._write(data):
                    return
            finally:
                self._writes.release()

    def _write(self, data: bytes) -> bool:
        try:
            overwrite(self._path, data)
        except ControlError as e:
            if not self._failed:
                _log.warning("%s: %s", e, self._loss)
            self._failed = True
            return False
        if self._failed:
            _log.info("%s is written now", self._path)
        self._failed = False
        self._written = data
        return True


def put(path: Path, data: bytes) -> None:
    """Write over a file that need not outlive a power cut, in place.

    Once it is there it takes no more room, and what a reader finds is whole: the rest of
    `PLACE_BYTES` is spaces. OSError if it cannot be written.
    """
    if len(data) > PLACE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    with noted(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, data.ljust(PLACE_BYTES), 0)
        except OSError:
            if not os.fstat(fd).st_size:  # it has just been made, and there is no room for it
                with contextlib.suppress(OSError):
                    path.unlink()
            raise
        finally:
            os.close(fd)


def remove(path: Path) -> None:
    """It is gone after this, if it was there. ControlError if it cannot be removed."""
    try:
        with noted(path), contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_directory(path.parent)
    except OSError as e:
        raise ControlError(f"cannot remove {path}: {e.strerror}") from e


def sync_directory(directory: Path) -> None:
    """The names in it are what they are after a power cut, too. OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
