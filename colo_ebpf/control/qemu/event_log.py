# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's events in a file, for the daemon that was not there when they happened.

QEMU gets a third monitor on a pair of plain files (a chardev `pipe`): the one it reads holds the
word that begins QMP, the other takes every event of its life. A daemon that adopts the VM reads
what it missed: a failed disk, a write that the secondary's image lacks, when its guest ended it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf.control.decision.record import LATEST_S
from colo_ebpf.control.interfaces import Past, is_peer_node
from colo_ebpf.control.qemu.cmdline import SYNC_JOB
from colo_ebpf.control.qemu.log_tail import LogTail
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import VmError

_GREETING = b'{"execute": "qmp_capabilities"}\n'
_log = logging.getLogger(__name__)


def follow(past: Past, events: Iterable[dict[str, Any]]) -> Past:
    """The past after some more events."""
    change = msgspec.structs.replace
    for event in events:
        name, data = event.get("event"), event.get("data", {})
        if not isinstance(data, dict):
            continue
        if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            past = change(past, waits=True, spoilt=past.spoilt or not past.left)
        elif name == "BLOCK_IO_ERROR":
            past = change(past, disk=past.disk or str(data.get("reason", "no reason given")))
        elif name == "QUORUM_REPORT_BAD":
            past = _disk_bad(past, data)
        elif name == "JOB_STATUS_CHANGE" and data.get("status") == "created":
            anew = str(data.get("id", "")).startswith(SYNC_JOB)
            past = change(past, peer_disk=past.peer_disk and not anew)
        elif name == "COLO_EXIT" and data.get("mode") == "secondary":
            past = change(past, disk="", left=True)  # what failed until then was the replica's
        elif name == "SHUTDOWN" and data.get("guest"):
            past = change(past, off_at_s=_seconds(event))
        elif name == "RESUME":
            past = change(past, off_at_s=None, waits=False)
        elif name in ("GUEST_PANICKED", "RESET"):
            past = change(past, panicked=name == "GUEST_PANICKED")
    return past


def _seconds(event: dict[str, Any]) -> int:
    """When it was; 0 if it does not say so."""
    stamp = event.get("timestamp")
    seconds = stamp.get("seconds") if isinstance(stamp, dict) else 0
    return seconds if isinstance(seconds, int) and 0 <= seconds < LATEST_S else 0


def _disk_bad(past: Past, data: dict[str, Any]) -> Past:
    node = data.get("node-name")
    if node is None or is_peer_node(str(node)):
        return msgspec.structs.replace(past, peer_disk=True)
    reason = past.disk or str(data.get("error", "no reason given"))
    return msgspec.structs.replace(past, disk=reason)


def _follow_lines(past: Past, lines: Sequence[bytes]) -> Past:
    return follow(past, (_event(line) for line in lines))


class EventLog:
    """Of one instance. `path` without the `.in` and `.out` that QEMU adds."""

    def __init__(self, path: Path) -> None:
        self._greeting, self._events = path.with_suffix(".in"), path.with_suffix(".out")
        self._summed = LogTail(self._events, Past(), _follow_lines)

    @property
    def files(self) -> tuple[Path, Path]:
        """What QEMU reads, and what it writes."""
        return self._greeting, self._events

    def make(self) -> None:
        """Before QEMU starts. VmError if it cannot be made."""
        try:
            with atomic.noted(self._events):
                self._greeting.write_bytes(_GREETING)
                self._events.write_bytes(b"")
        except OSError as e:
            raise VmError(f"{self._events}: {e.strerror}") from e

    def read(self) -> Past:
        """All that happened; a line that is half written is left for the next look."""
        try:
            return self._summed.read()
        except OSError as e:
            _log.warning("what happened to the VM without a daemon is not known: %s", e)
            return self._summed.last

    def cut(self) -> None:
        """If it has grown: give back the room of what was read."""
        self._summed.cut()

    def close(self) -> None:
        """Once the VM is ended."""
        self._summed.close()


def _event(line: bytes) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode(line))
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        return {}
