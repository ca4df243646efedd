# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf verify`: are the images of a protected pair equal? Compared here, byte for byte; of a
disk that both hosts share, what both read at some places."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from colo_ebpf.cli import planned
from colo_ebpf.cli.vms import socket_of
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin.control_socket import Conversation
from colo_ebpf.errors import ControlError
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.sample import Sampling
from colo_ebpf.storage.verify import Comparison, Progress, compare

_TELL_EVERY_S = 0.2
_CHECKPOINT_S = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    most: int  # differing ranges to tell of, for each disk
    sample_bytes: int  # to read of a shared disk
    quiet: bool


def verify(config: Config, wanted: Wanted) -> dict[str, Any]:
    """Compare all disks. Raises ColoError."""
    socket = socket_of(config)
    with Conversation(socket, _patience_s(config)) as daemon:
        lent = daemon.ask("lend")["images"]
        started_s = time.monotonic()
        disks = [_disk(one, config, wanted, socket) for one in lent]
        seconds = time.monotonic() - started_s
        if not daemon.ask("take-back")["lasted"]:
            raise ControlError(
                "the pair ended while its images were compared: that says nothing; see "
                "`colo-ebpf status`"
            )
    return {
        "equal": all(disk["complete"] and not disk["differences"] for disk in disks),
        "seconds": seconds,
        "disks": disks,
    }


def _patience_s(config: Config) -> float:
    """Opening the images is a few commands to QEMU for each disk."""
    return (4 + len(config.vm.disk)) * config.timing.qmp_timeout_ms / 1000


def _disk(lent: dict[str, Any], config: Config, wanted: Wanted, socket: Path) -> dict[str, Any]:
    name, timeout_ms = str(lent["export"]), config.timing.qmp_timeout_ms
    here = ExportAddress(name, path=str(lent["path"]))
    there = ExportAddress(str(lent["replica"]), str(lent["host"]), int(lent["port"]))
    with (
        Connection(here, timeout_ms) as local,
        Connection(there, timeout_ms) as remote,
        _progress(name, wanted.quiet) as progress,
    ):
        if lent["shared"]:
            checkpoint = partial(planned.checkpoint, socket, _CHECKPOINT_S)
            sampling = Sampling(local, remote, checkpoint, random.Random())
            found = sampling.run(wanted.sample_bytes, wanted.most, progress)
        else:
            found = compare(local, remote, wanted.most, progress)
        return {
            "name": name,
            "replica": str(there),
            "shared": bool(lent["shared"]),
            **plain(found),
        }


def plain(found: Comparison) -> dict[str, Any]:
    """For JSON."""
    return {
        "size_bytes": found.size_bytes,
        "read_bytes": found.read_bytes,
        "zero_bytes": found.zero_bytes,
        "again_bytes": found.again_bytes,
        "unsettled_bytes": found.unsettled_bytes,
        "complete": found.complete,
        "differences": [
            {"offset_bytes": one.offset_bytes, "length_bytes": one.length_bytes}
            for one in found.differences
        ],
    }


@contextmanager
def _progress(name: str, quiet: bool) -> Iterator[Progress]:
    """A line that is rewritten, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    told_s = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= _TELL_EVERY_S:
            told_s = now_s
            part = f"{done >> 20} of {total >> 20} MiB ({100 * done // total} %)"
            print(f"\r{name}: {part}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def readable(found: dict[str, Any]) -> str:
    """For people."""
    lines = [line for disk in found["disks"] for line in _lines(disk)]
    verdict = "equal" if found["equal"] else "DIFFERENT"
    return "\n".join([*lines, f"{verdict}, compared in {found['seconds']:.1f} s"])


def _lines(disk: dict[str, Any]) -> Iterator[str]:
    def mib(key: str) -> str:
        return f"{disk[key] / (1 << 20):.1f} MiB"

    where = ", shared: places drawn at random" if disk["shared"] else ""
    yield (
        f"{disk['name']}: {mib('size_bytes')}, {mib('read_bytes')} read, {mib('zero_bytes')} zero "
        f"on both sides; {disk['again_bytes']} bytes looked at again{where}"
    )
    if disk["unsettled_bytes"]:
        yield f"{disk['name']}: {disk['unsettled_bytes']} bytes are written to all the time"
    for one in disk["differences"]:
        yield f"{disk['name']}: differs at {one['offset_bytes']}, {one['length_bytes']} bytes"
    if not disk["complete"]:
        yield f"{disk['name']}: more differs; the rest was not looked at"
