# SPDX-License-Identifier: GPL-2.0-only
"""The control part once through, as small as it gets: every row is there, nothing is left."""

from __future__ import annotations

import pytest

from colo_ebpf.bench.pair import part_control, pause
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import topology
from tests.capabilities import require

NAME = "colotestp"
LEAST = part_control.Amounts(
    idle_s=1,
    mismatches=3,
    load_s=1,
    stalls=2,
    qemu_stalls=2,
    groups=(2, 2),
    kills=("vm", "host"),
)
LANES = {
    "idle daemon, processor": {"primary", "secondary"},
    "idle daemon, RSS": {"primary", "secondary"},
    "idle daemon, PSS": {"primary", "secondary"},
    "idle daemon, USS": {"primary", "secondary"},
    "checkpoint pause, idle guest": {"ours", "qemu"},
    "mismatch to checkpoint request, p50": {"ours"},
    "mismatch to checkpoint request, p99": {"ours"},
    "stall when the SVM is silent": {"ours", "qemu"},
    "checkpoints without a cause under load": {"ours"},
    "client outage": {"QEMU killed", "host killed"},
    "longest silence until protected again": {"QEMU killed", "host killed"},
    "kill to detected": {"QEMU killed", "host killed"},
    "kill to record active": {"QEMU killed", "host killed"},
    "kill to the survivor's first frame": {"QEMU killed", "host killed"},
    "protected again": {"QEMU killed", "host killed"},
}


def test_every_row_is_measured_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    require("root", "bpf", "qemu", "guest")
    monkeypatch.setattr(pause, "STOCK_NAME", f"{NAME}s")
    recorder = Recorder(lambda _: None)
    part_control.measure(recorder, LEAST, NAME)
    found = recorder.results(quick=True)
    lanes: dict[str, set[str]] = {}
    for row in found.rows:
        lanes.setdefault(row.measure, set()).add(row.lane)
        assert row.part == "control"
        assert row.values, row
        assert min(row.values) >= 0, row
    assert lanes == LANES
    silence = found.row("control", "client outage", "QEMU killed")
    frame = found.row("control", "kill to the survivor's first frame", "QEMU killed")
    assert silence is not None
    assert frame is not None
    assert silence.values[0] > 0
    assert frame.values[0] > 0
    client = next(c for c in found.curves if c.line == "client: one entry")
    assert any(x < 0 for x, _ in client.points)
    assert any(x > 0 for x, _ in client.points)
    assert not [name for name in namespaces.names() if name.startswith(NAME)]
    assert not topology.directory(NAME).exists()
    assert not topology.directory(f"{NAME}s").exists()
