# SPDX-License-Identifier: GPL-2.0-only
"""Files that have to be there after a power cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from colo_ebpf.errors import ControlError


def write(path: Path, data: bytes) -> None:
    """Replace a file: after this it has the new content, whatever happens; before, the old one.
    ControlError if it cannot be written."""
    made = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as tmp:
            made = Path(tmp.name)
            tmp.write(data)
            tmp.flush()
            os.fsync(tmp.fileno())
        made.replace(path)
        _sync(path.parent)
    except OSError as e:
        if made is not None:
            made.unlink(missing_ok=True)
        raise ControlError(f"cannot write {path}: {e.strerror}") from e


def overwrite(path: Path, data: bytes) -> None:
    """The same for a file that has this length already: it needs no room on the file system. At
    most 512 bytes, which a disk writes all or none of. ControlError if it cannot be written."""
    try:
        if path.stat().st_size == len(data):
            fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
            try:
                os.pwrite(fd, data, 0)
            finally:
                os.close(fd)
            return
    except FileNotFoundError:
        pass
    except OSError as e:
        raise ControlError(f"cannot write {path}: {e.strerror}") from e
    write(path, data)


def remove(path: Path) -> None:
    """It is gone after this, if it was there. ControlError if it cannot be removed."""
    try:
        path.unlink()
        _sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as e:
        raise ControlError(f"cannot remove {path}: {e.strerror}") from e


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
