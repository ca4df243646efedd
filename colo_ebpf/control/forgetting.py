# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf forget`: what the daemon made on this host for a VM, taken away again.

All of it outlives the daemon, as the VM does. What an administrator made stays: images,
configuration, bridge, key, and the arbiter's record.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings, startup
from colo_ebpf.control.decision.record import Disk, Record, host_of
from colo_ebpf.control.state.history import FILE as HISTORY
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.datapath import removal
from colo_ebpf.datapath.net import xfrm
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import ControlError, StorageError
from colo_ebpf.storage import overlay

_NOTES = ("generation", HISTORY, "pause")  # in the state directory
_SEALS = (Security.NONE, Security.WIREGUARD)  # each has other addresses


def require_unused(config: Config) -> None:
    """ControlError or AttachError if the VM's daemon or its QEMU runs here."""
    run_dir = Path(config.host.run_dir)
    if run_dir.is_dir():
        startup.lock(run_dir).close()
    removal.require_unused(settings.plane_spec(config, security=Security.NONE))


def forget(config: Config, record: Record | None, *, keep_notes: bool = False) -> list[str]:
    """Takes it away. Returns names and paths of what was there. `record`: the arbiter's, if it is
    known; `keep_notes`: of the state directory. What is not there is no error, so that it can be
    done again.

    Raises ColoError; then what was not reached is left.
    """
    run_dir = Path(config.host.run_dir)
    removed = [str(run_dir)] if run_dir.is_dir() else []
    held = startup.lock(run_dir)  # no daemon starts meanwhile
    try:
        for security in _SEALS:
            removed += removal.remove(settings.plane_spec(config, security=security))
        settings.through(config).remove()
        xfrm.remove(settings.link_ends(config))
        removed += _overlays(config, needed=_needs_overlays(record, config.host.name))
        if not keep_notes:
            removed += _notes(config)
        _remove_files_of_run(run_dir)
        return removed
    finally:
        held.close()


def _needs_overlays(record: Record | None, host: str) -> bool:
    """They may hold what the images here lack."""
    return record is None or (record.disk is Disk.OVERLAID and host_of(record.owner) == host)


def _overlays(config: Config, *, needed: bool) -> list[str]:
    """Directories that are gone."""
    gone = []
    for disk in settings.vm_spec(config, "tcg").disks:
        files = (disk.digests,) if needed else (disk.digests, *disk.overlays)
        if not disk.readonly and overlay.release(disk.overlay_dir, config.vm.name, files):
            gone.append(str(disk.overlay_dir))
    return gone


def left(config: Config) -> list[str]:
    """What somebody has to know of the images here, in sentences."""
    found = []
    try:
        InconsistentImages(Path(config.host.state_dir)).check()
    except (ControlError, StorageError) as e:
        found.append(str(e))
    for disk in config.vm.disk:
        if not disk.readonly and overlay.holds(Path(disk.overlay_dir)):
            found.append(
                f"overlay-dir {disk.overlay_dir} is left: its overlays may hold what {disk.path} "
                "lacks"
            )
    return found


def _notes(config: Config) -> list[str]:
    """But for the one that says that the images are no disk that boots."""
    directory = Path(config.host.state_dir)
    there = [path for name in _NOTES if (path := directory / name).exists()]
    try:
        for path in there:
            path.unlink()
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    except OSError as e:
        raise ControlError(f"host.state-dir: cannot remove {e.filename}: {e.strerror}") from e
    return [str(path) for path in there]


def _remove_files_of_run(directory: Path) -> None:
    """Sockets, logs and locks. Another VM's directory may be in it."""
    try:
        for path in directory.iterdir():
            if path.name == "qemu" and path.is_dir():
                shutil.rmtree(path)
            elif not path.is_dir():
                path.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()
    except OSError as e:
        raise ControlError(f"host.run-dir: cannot remove {e.filename}: {e.strerror}") from e
