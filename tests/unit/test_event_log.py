# SPDX-License-Identifier: GPL-2.0-only
"""What a daemon learns from the events that it missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.qemu import colo_trace, log_tail
from colo_ebpf.control.qemu.event_log import EventLog, follow
from colo_ebpf.control.qemu.log_tail import LogTail


def _event(name: str, **data: Any) -> dict[str, Any]:
    plain = {key.replace("_", "-"): value for key, value in data.items()}
    return {"event": name, "data": plain, "timestamp": {"seconds": 1_700_000_000}}


IO_ERROR = _event("BLOCK_IO_ERROR", reason="No space left on device")
PEER_BAD = _event("QUORUM_REPORT_BAD", node_name="nbd0", type="write")
LOCAL_BAD = _event("QUORUM_REPORT_BAD", node_name="#block7", error="Input/output error")
LEFT = _event("COLO_EXIT", mode="secondary", reason="error")
SYNC = _event("JOB_STATUS_CHANGE", id="colo-sync0", status="created")
OFF = _event("SHUTDOWN", guest=True, reason="guest-shutdown")
RESUME = _event("RESUME")


@pytest.mark.parametrize(
    ("events", "past"),
    [
        ([], Past()),
        ([IO_ERROR, LOCAL_BAD], Past(disk="No space left on device")),
        ([LOCAL_BAD], Past(disk="Input/output error")),
        ([IO_ERROR, LEFT], Past(left=True)),
        ([LEFT, IO_ERROR], Past(disk="No space left on device", left=True)),
        ([SYNC, PEER_BAD], Past(peer_disk=True)),
        ([SYNC, PEER_BAD, SYNC], Past()),
        ([_event("QUORUM_REPORT_BAD")], Past(peer_disk=True)),
        ([OFF], Past(off_at_s=1_700_000_000)),
        ([OFF, RESUME], Past()),
        ([_event("SHUTDOWN", guest=False, reason="host-qmp-quit")], Past()),
        ([_event("GUEST_PANICKED")], Past(panicked=True)),
        ([_event("GUEST_PANICKED"), _event("RESET", guest=True)], Past()),
        ([{"return": {}}, {"QMP": {}}, _event("COLO_EXIT", mode="primary")], Past()),
    ],
)
def test_what_is_learnt(events: list[dict[str, Any]], past: Past) -> None:
    assert follow(Past(), events) == past


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    """Of a QEMU that has just started."""
    log = EventLog(tmp_path / "events-ab")
    log.make()
    return log


def _write(tmp_path: Path, *events: dict[str, Any], tail: bytes = b"") -> None:
    with (tmp_path / "events-ab.out").open("r+b") as file:
        file.seek(0, 2)
        file.write(b"".join(msgspec.json.encode(event) + b"\r\n" for event in events) + tail)


def test_a_half_written_or_strange_line_is_no_trouble(log: EventLog, tmp_path: Path) -> None:
    deep = b'{"event": "RESUME", "data": ' + b"[" * 5000 + b"\n"
    _write(tmp_path, PEER_BAD, tail=deep + b'[]\n"x"\nnot json\n{"event": "BLOCK_IO_')
    assert log.read() == Past(peer_disk=True)
    _write(tmp_path, tail=b'ERROR", "data": {"reason": "late"}}\n')
    assert log.read() == Past(peer_disk=True, disk="late")


def test_a_log_that_is_gone_says_nothing(tmp_path: Path) -> None:
    assert EventLog(tmp_path / "none").read() == Past()


def test_what_was_cut_off_is_remembered_and_its_room_given_back(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "_CUT_BYTES", 64 << 10)
    out = tmp_path / "events-ab.out"
    log.cut()
    assert (tmp_path / "events-ab.sum").stat().st_blocks > 0, "while there is room for it"
    _write(tmp_path, SYNC, PEER_BAD, *[RESUME] * 2_000, tail=b'{"event": "STOP"')
    size = out.stat().st_size
    log.cut()
    log.cut()
    assert out.stat().st_size == size, "QEMU goes on where it was"
    assert out.stat().st_blocks * 512 <= 8192
    _write(tmp_path, tail=b"}\n")
    _write(tmp_path, IO_ERROR)
    assert EventLog(tmp_path / "events-ab").read() == Past(
        peer_disk=True, disk="No space left on device"
    )


def _trace(path: Path) -> LogTail[colo_trace.TraceState]:
    return LogTail(path, colo_trace.TraceState(), colo_trace.follow)


def test_a_trace_is_cut_as_well_and_its_loads_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "_CUT_BYTES", 64 << 10)
    path = tmp_path / "colo-ab.trace"
    load = b"".join(
        f"1@2.{line}\n".encode()
        for line in (
            "3:colo_vm_state_change Change 'run' => 'stop'",
            "4:colo_send_message Send 'vmstate-received' message",
            "5:colo_vm_state_change Change 'stop' => 'run'",
            "6:colo_send_message Send 'vmstate-loaded' message",
        )
    )
    with path.open("wb", 0) as file:
        file.write(load * 1_000 + load[:100])
        first = _trace(path)
        first.cut()
        assert path.stat().st_blocks * 512 <= 8192
        file.write(load[100:] + load[:40])
        adopted = _trace(path)
        assert (
            adopted.read()
            == first.read()
            == colo_trace.TraceState(stopped=False, received=True, loads=1_001, new=True)
        )


def test_a_file_that_is_not_there_yet_is_an_error_and_no_loss(tmp_path: Path) -> None:
    summing = _trace(tmp_path / "colo-ab.trace")
    with pytest.raises(FileNotFoundError):
        summing.read()
    assert summing.last == colo_trace.TraceState()
    assert summing.closed
