# SPDX-License-Identifier: GPL-2.0-only
"""Of which replicas the images of this host are the remains, in a file beside the daemon's others.

A primary whose secondary is lost keeps a bitmap of what it wrote since the two were equal, named
after that secondary. This file says that the images here are still that secondary's: nothing but
what a primary sent was ever written to them. So it is emptied before anything else can write, it
counts for the same files only, and not over a reboot of the host, which may lose what no flush had
made durable.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from colo_ebpf.control import cmdline, durable
from colo_ebpf.control.cmdline import VmSpec
from colo_ebpf.errors import ControlError, StorageError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST = 4  # attempts that failed before they had a bitmap stand between two that matter


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    boot_id: str
    files: list[tuple[int, int]]  # device and inode of each image
    replicas: list[str]


class Lineage:
    """`<run_dir>/replicas.json`."""

    def __init__(self, path: Path, images: tuple[Path, ...]) -> None:
        self._path, self._images = path, images

    @classmethod
    def of(cls, spec: VmSpec) -> Lineage:
        """Of this VM's images."""
        return cls(cmdline.lineage_path(spec), tuple(disk.path for disk in spec.disks))

    def begin(self, instance: str) -> None:
        """A secondary is made of the images. Raises StorageError or ControlError."""
        replicas = [*self.replicas(), instance][-_MOST:]
        kept = _Kept(_boot_id(), self._files(), replicas)
        durable.write(self._path, msgspec.json.encode(kept))

    def replicas(self) -> tuple[str, ...]:
        """The instances, oldest first; empty if that is not known."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            same = kept.boot_id == _boot_id() and kept.files == self._files()
        except (OSError, msgspec.MsgspecError, StorageError):
            return ()
        return tuple(kept.replicas) if same else ()

    def end(self) -> None:
        """Another one than a primary is going to write. Raises ControlError: then it must not."""
        try:
            durable.remove(self._path)
        except ControlError as e:
            raise ControlError(f"{e}: cannot note that the images are no replica any more") from e

    def _files(self) -> list[tuple[int, int]]:
        try:
            found = [path.stat() for path in self._images]
        except OSError as e:
            raise StorageError(f"{e.filename}: {e.strerror}") from e
        return [(one.st_dev, one.st_ino) for one in found]


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
