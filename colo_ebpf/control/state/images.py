# SPDX-License-Identifier: GPL-2.0-only
"""Of which replicas the images of this host are the remains, in a file beside the daemon's others.

A primary whose secondary is lost keeps a bitmap of what it wrote since the two were equal, named
after that secondary. This file says that the images here are still that secondary's: nothing but
what a primary sent was ever written to them. So it is emptied before anything else can write, it
counts for the same files only, and not over a reboot of the host, which may lose what no flush had
made durable.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import msgspec

from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ControlError, StorageError
from colo_ebpf.storage import image

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)
_MOST = 4  # attempts that failed before they had a bitmap stand between two that matter


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    boot_id: str
    files: list[tuple[int, ...]]  # who each image is, `storage.image.identity`
    replicas: list[str]


class DataGeneration:
    """`<run_dir>/replicas.json`. As DRBD has it: what the images have in common with the peer's."""

    _ended: ClassVar[set[Path]] = set()

    def __init__(self, path: Path, images: tuple[Path, ...]) -> None:
        self._path, self._images = path, images

    def begin(self, instance: str) -> None:
        """A secondary is made of the images. Raises StorageError or ControlError."""
        replicas = [*self.replicas(), instance][-_MOST:]
        kept = _Kept(_boot_id(), self._files(), replicas)
        atomic.write(self._path, msgspec.json.encode(kept))
        self._ended.discard(self._path)

    def replicas(self) -> tuple[str, ...]:
        """The instances, oldest first; empty if that is not known."""
        if self._path in self._ended:
            return ()
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            same = kept.boot_id == _boot_id() and kept.files == self._files()
        except (OSError, msgspec.MsgspecError, StorageError):
            return ()
        return tuple(kept.replicas) if same else ()

    def end(self) -> None:
        """Another one than a primary is going to write. That does not wait for a file: while this
        daemon runs, one that cannot be removed counts as removed, and none can be begun."""
        self._ended.add(self._path)
        try:
            atomic.remove(self._path)
        except ControlError as e:
            _log.warning("%s: it would say that the images here are a replica's: remove it", e)

    def _files(self) -> list[tuple[int, ...]]:
        return [image.identity(path) for path in self._images]


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
