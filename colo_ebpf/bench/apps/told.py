# SPDX-License-Identifier: GPL-2.0-only
"""One reading, for people and for programs. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from colo_ebpf.bench.apps.lane import Checkpoints, Measured
from colo_ebpf.bench.apps.loads import Load


def line(lane: str, load: Load, found: Measured | str) -> str:
    """A line of text; instead of a reading there may be why there is none."""
    front = f"{lane:9} {load.key:18}"
    if isinstance(found, str):
        return f"{front} broke: {found}"
    reading = found.reading
    text = (
        f"{front} {reading.rate:9.1f} {load.unit:4} p50 {reading.p50_ms:8.2f} ms  "
        f"p99 {reading.p99_ms:8.2f} ms  longest {reading.longest_ms:8.2f} ms"
    )
    return f"{text}  {_checkpoints(found.checkpoints)}" if found.checkpoints else text


def _checkpoints(found: Checkpoints) -> str:
    return (
        f"checkpoints {found.count} in {found.seconds:.1f} s ({found.causes()})  "
        f"pause p50 {found.pause_ms(0.5):.1f} p99 {found.pause_ms(0.99):.1f} ms  "
        f"stopped {found.stopped:.1%}"
    )


def plain(lane: str, load: Load, found: Measured | str) -> dict[str, Any]:
    """Plain values, for JSON."""
    if isinstance(found, str):
        return {"lane": lane, "load": load.key, "broke": found}
    return {"lane": lane, "load": load.key, "unit": load.unit, **asdict(found)}
