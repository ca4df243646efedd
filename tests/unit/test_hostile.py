# SPDX-License-Identifier: GPL-2.0-only
"""Files and packets that others write: whatever stands there, nothing but our errors come of it.

QEMU writes traces and events, and may be somebody else's by then; whoever reaches the arbiter's
directory writes records. `COLO_HOSTILE` sets how many are tried (`make soak`).
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import KEYS, parse_config
from colo_ebpf.control.decision import record
from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.qemu import colo_trace, event_log
from colo_ebpf.control.qemu.event_log import EventLog
from colo_ebpf.control.qemu.log_tail import LogTail
from colo_ebpf.control.state.files import NoteFile
from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.errors import ColoError

_TRIES = int(os.environ.get("COLO_HOSTILE", "300"))
_many = settings(
    max_examples=_TRIES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
_NAMES = st.sampled_from(
    [
        *("BLOCK_IO_ERROR", "QUORUM_REPORT_BAD", "JOB_STATUS_CHANGE", "COLO_EXIT", "SHUTDOWN"),
        *("RESUME", "GUEST_PANICKED", "RESET"),
    ]
)
_EVENTS = st.fixed_dictionaries(
    {"event": _NAMES | _JSON},
    optional={
        "data": _JSON
        | st.dictionaries(
            st.sampled_from(["reason", "node-name", "status", "id", "mode", "guest", "error"]),
            _JSON,
        ),
        "timestamp": _JSON | st.fixed_dictionaries({"seconds": _JSON}),
    },
)
_LINES = st.lists(
    st.binary(max_size=60)
    | _EVENTS.map(lambda one: json.dumps(one, default=str).encode())
    | st.sampled_from(
        [
            b"colo_vm_state_change Change 'run' => 'stop'",
            b"colo_vm_state_change Change 'stop' => 'run'",
            b"colo_send_message Send 'vmstate-received' message",
            b"colo_receive_message Receive 'vmstate-loaded' message",
        ]
    ),
    max_size=12,
)


_STARTED = record.activate(record.start(record.cold("a"), "a/0000000000000001"))
_RECORDS = [
    record.cold("a"),
    _STARTED,
    record.pair(_STARTED, "b/0000000000000002", 7),
    record.power_off(_STARTED, 1_700_000_000),
]


def _only_our_errors(run: Callable[[], Any]) -> None:
    try:
        run()
    except ColoError:
        return


@_many
@given(st.binary(max_size=400) | _JSON.map(lambda one: json.dumps(one, default=str).encode()))
def test_a_record_is_read_or_refused(text: bytes) -> None:
    _only_our_errors(lambda: record.decode(text, "there").describe())


@_many
@given(st.data())
def test_a_record_with_a_strange_word_is_read_or_refused(data: st.DataObject) -> None:
    good = json.loads(record.encode(data.draw(st.sampled_from(_RECORDS))))
    for key in list(good):
        if data.draw(st.booleans()):
            good[key] = data.draw(_JSON)
    good["off_at_s"] = data.draw(st.integers() | st.just(0))
    text = json.dumps(good, default=str).encode()
    _only_our_errors(lambda: record.decode(text, "there").describe())


@_many
@given(_LINES)
def test_a_trace_is_followed_whatever_stands_there(lines: list[bytes]) -> None:
    state = colo_trace.follow(colo_trace.TraceState(), lines)
    for exited in (False, True):
        colo_trace.settled(state, exited)


@_many
@given(_LINES)
def test_events_are_followed_whatever_stands_there(lines: list[bytes]) -> None:
    event_log._follow_lines(Past(), lines)


@_many
@given(st.binary(max_size=300))
def test_what_was_kept_is_used_or_left(tmp_path: Path, text: bytes) -> None:
    for name in ("events-1.sum", "events-1.out", "turns.json", "replicas.json"):
        (tmp_path / name).write_bytes(text)
    EventLog(tmp_path / "events-1").read()
    NoteFile(tmp_path / "turns.json").load("a/0123456789abcdef")
    assert DataGeneration(tmp_path / "replicas.json", ()).replicas() == ()


@_many
@given(st.binary(max_size=500).map(lambda raw: raw.decode("latin-1")))
def test_a_configuration_is_read_or_refused(text: str) -> None:
    _only_our_errors(lambda: parse_config(text, Path("x.toml")))


@_many
@given(st.sampled_from(sorted(KEYS)), st.data())
def test_a_configuration_with_a_strange_value_is_read_or_refused(
    table: str, data: st.DataObject
) -> None:
    keys = KEYS[table]
    key = data.draw(st.sampled_from(keys))
    value = data.draw(st.integers() | st.text(max_size=30) | st.booleans())
    changed = [
        f"{key} = {json.dumps(value)}" if line.split(" ")[0] == key else line
        for line in EXAMPLE.splitlines()
    ]
    _only_our_errors(lambda: parse_config("\n".join(changed), Path("x.toml")))


@pytest.mark.parametrize(
    "content", [b"x" * 4096, b'{"event": "RESUME"}\n' * 200], ids=["no line", "lines"]
)
def test_a_file_of_any_size_takes_little_memory(tmp_path: Path, content: bytes) -> None:
    """A QEMU that is not itself any more writes without end."""
    path = tmp_path / "events-1.out"
    with path.open("wb") as file:
        for _ in range(8 << 20 >> 12):
            file.write(content)
    one = LogTail(path, Past(), event_log._follow_lines)
    tracemalloc.start()
    try:
        one.read()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        one.close()
    assert most < 7 << 20
