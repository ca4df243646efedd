# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf report`: what happened to a VM, as a page to look at and to pass on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from colo_ebpf.cli import history, vms
from colo_ebpf.cli.timeline import Known, of_failover, of_hours
from colo_ebpf.cli.timeline_page import page
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ColoError


def write(config: Config, output: Path, hours: float, failover: int | None) -> dict[str, Any]:
    """Make the page. ControlError if it cannot be written, or there was no such failover."""
    known = _known(config)
    line = of_hours(known, hours) if failover is None else of_failover(known, failover)
    atomic.write(output, page(line).encode())
    return {
        "file": str(output),
        "begin_s": line.begin_s,
        "end_s": line.end_s,
        "changes": len(line.rows),
        "samples": len(line.samples),
        "missing": line.missing,
    }


def _known(config: Config) -> Known:
    """A daemon that does not answer leaves the history, which needs none."""
    rows = history.rows(Path(config.host.state_dir))
    samples: list[dict[str, Any]] = []
    sentences: list[tuple[float, str]] = []
    missing = ""
    try:
        with control_socket.Conversation(vms.socket_of(config)) as daemon:
            samples = _samples(daemon)
            now_s = time.time()
            sentences = [
                (now_s - row["ago_ms"] / 1000, row["sentence"]) for row in daemon.ask("history")
            ]
    except ColoError as e:
        missing = f"Only changes of state are shown: {e}"
    return Known(
        vm=config.vm.name,
        host=config.host.name,
        peer=config.peer.name,
        now_s=time.time(),
        rows=rows,
        samples=samples,
        sentences=sentences,
        missing=missing,
    )


def _samples(daemon: control_socket.Conversation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"next": 0, "more": True}
    while answer["more"]:
        answer = daemon.ask("samples", after=answer["next"])
        found += answer["rows"]
    return found


def readable(said: dict[str, Any]) -> str:
    """For people."""
    missing = f"\n{said['missing']}" if said["missing"] else ""
    return f"{said['file']}: {said['changes']} changes, {said['samples']} samples{missing}"
