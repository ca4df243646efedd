# SPDX-License-Identifier: GPL-2.0-only
"""Good inputs of each kind, changed at random, and what a host does with them.

Cheap enough for a million: no search for the smallest input, as Hypothesis has it
(`tests/unit/test_hostile.py`). A seed and a number give the same input again.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control.admin import server
from colo_ebpf.control.admin.samples import Samples
from colo_ebpf.control.decision import record
from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.peer import envelope, state
from colo_ebpf.control.peer.link_keys import Offer
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import PeerState, PeerView
from colo_ebpf.control.qemu import colo_trace, event_log
from colo_ebpf.errors import ColoError, Refusal
from colo_ebpf.model import Endpoints
from tests.sim.test_planned import _pair

_CHANGES = (1, 1, 1, 2, 3, 4)
_VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|\b(?:true|false|null)\b')
_ODD_TEXT = (
    *(b"-1", b"0", b"4294967296", b"9007199254740993", b"9223372036854775808", b"1e999", b"NaN"),
    *(b"253402300800", b"9" * 30, b"9" * 5000, b"0x7f", b"1.5", b"1979-05-27T07:32:00Z"),
    *(b"null", b"true", b'""', b"'''", b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 300 + b'"'),
    *(b"[]", b"{}", b'[{"a": 1}]', b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\x00", b"#"),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 1 << 32, 1 << 53, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63), 253_402_300_800),
    *(1e308, float("nan"), None, True, False, "", "x" * 300, "\0", "\x7f\n", b"", b"\xff" * 40),
    *([], [None], {}, {"a": 1}, [[[[]]]]),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """`take` is what a host does with one: True if it was accepted. It may raise our errors."""

    good: tuple[bytes, ...]
    take: Callable[[bytes], bool]
    change: Callable[[bytes, Random], bytes]

    def made(self, seed: int, number: int) -> bytes:
        """One of the changed inputs."""
        random = Random(f"{seed}/{number}")
        return self.change(random.choice(self.good), random)

    def accepts(self, data: bytes) -> bool:
        """Whether it was taken; else it was refused in our own words."""
        try:
            return self.take(data)
        except ColoError as e:
            assert str(e)
            return False


# --- changes ------------------------------------------------------------------------------


def _text(good: bytes, random: Random) -> bytes:
    """Values replaced by odd ones, and bytes changed."""
    for _ in range(random.choice(_CHANGES)):
        good = random.choice((_value, _value, _bytes))(good, random)
    return good


def _value(text: bytes, random: Random) -> bytes:
    found = list(_VALUE.finditer(text))
    if not found:
        return text + random.choice(_ODD_TEXT)
    at = random.choice(found)
    other = random.choice((random.choice(_ODD_TEXT), random.choice(found)[0]))
    return text[: at.start()] + other + text[at.end() :]


def _bytes(data: bytes, random: Random) -> bytes:
    first, last = sorted(random.randint(0, len(data)) for _ in "ab")
    part = data[first:last]
    into = random.choice((b"", part * 2, part[::-1], random.randbytes(random.randint(1, 4))))
    if random.random() < 0.5:  # a small one, so that most of it is as it was
        last = min(last, first + 3)
    return data[:first] + into + data[last:]


def _message(said: bytes, random: Random) -> bytes:
    """Of a peer: bytes of it, or values in it."""
    if random.random() < 0.3:
        return _bytes(said, random)
    value = msgspec.msgpack.decode(said)
    for _ in range(random.choice(_CHANGES)):
        of = random.choice([value, *(one for one in value.values() if one and type(one) is dict)])
        of[random.choice(list(of))] = copy.deepcopy(random.choice(_ODD_VALUES))
    return msgspec.msgpack.encode(value)


# --- what is done with them ---------------------------------------------------------------


def _configuration(data: bytes) -> bool:
    parse_config(data.decode(errors="replace"), Path("x.toml"))
    return True


def _record(data: bytes) -> bool:
    return bool(record.decode(data, "there").describe())


_SEAL = envelope.Seal(b"0123456789abcdef")
_RUN = _SEAL.begin()


def _said(said: bytes) -> bool:
    """By a peer that has the key; and what a daemon does at once with what it hears."""
    view = PeerView("web", "b", "mine", _SEAL, 0)
    view.receive(_RUN.close(1, said), state.Path.LINK, 1)
    if view.state is None:
        assert view.echo or sum(view.refusals.values()) == 1
        assert set(view.refusals) <= {Refusal.MALFORMED, Refusal.VM, Refusal.HOST}
        return False
    view.state.pause.over(time.time())
    return bool(view.state.pause.sentence() and state.words(view.state))


def _trace(data: bytes) -> bool:
    followed = colo_trace.follow(colo_trace.TraceState(), data.split(b"\n"))
    for exited in (False, True):
        colo_trace.settled(followed, exited)
    return followed != colo_trace.TraceState()


def _events(data: bytes) -> bool:
    return event_log._follow_lines(Past(), data.split(b"\n")) != Past()


@functools.cache
def _servers() -> list[server.ControlServer]:
    """Both daemons of a pair that is well, with decisions of their own and a toy of all else."""
    made = []
    for host in _pair(11).hosts.values():
        toys = {"status": dict, "samples": Samples()}
        plane = SimpleNamespace(mismatches=list)
        daemon = SimpleNamespace(core=host.core, plane=plane, **toys)
        made.append(server.ControlServer(cast(Any, daemon), Path("/nowhere")))
    return made


def _request(line: bytes) -> bool:
    """Of an operator; both daemons answer, in one line."""
    answers = [_answered(one, line) for one in _servers()]
    server._command(line)
    assert all(list(answer) in (["ok"], ["error"]) for answer in answers)
    assert all(b"\n" not in json.dumps(answer).encode() for answer in answers)
    return any("ok" in answer for answer in answers)


def _answered(one: server.ControlServer, line: bytes) -> dict[str, Any]:
    """Nothing that is asked here waits: a loop would be most of the work."""
    try:
        one._answer(line, "asker").send(None)
    except StopIteration as done:
        return cast(dict[str, Any], done.value)
    raise AssertionError(f"{line!r} waits")


# --- good ones ----------------------------------------------------------------------------


def _short(configuration: str) -> bytes:
    """Without what is said about it."""
    lines = (re.sub(r"\s*#.*", "", line) for line in configuration.splitlines())
    return "\n".join(line for line in lines if line).encode()


def _records() -> tuple[bytes, ...]:
    started = record.activate(record.start(record.cold("a"), "a/0000000000000001"))
    paired = record.pair(started, "b/0000000000000002", 7)
    off = record.power_off(started, 1_700_000_000)
    return tuple(record.encode(one) for one in (record.cold("a"), started, paired, off))


def _messages() -> tuple[bytes, ...]:
    names: dict[str, Any] = {"vm": "web", "host": "b", "boot": "theirs", "echo": "mine"}
    full = PeerState(
        **names,
        pause=Pause(3, True, 1_800_000_000, "new kernel"),
        answer=state.Answer("token", True, "b serves now"),
        endpoints=Endpoints("192.0.2.2", 10809, 10810, ("a/1",)),
        link_offer=Offer(7, b"s" * 16, "theirs"),
        compatibility={"memory": "512"},
        offsets=[b"o" * 8],
    )
    return state.words(PeerState(**names)), state.words(full)


_TRACE = b"""colo_vm_state_change Change 'run' => 'stop'
colo_send_message Send 'vmstate-received' message
colo_send_message Send 'vmstate-loaded' message
colo_vm_state_change Change 'stop' => 'run'
colo_receive_message Receive 'vmstate-loaded' message
"""


def _event_lines() -> bytes:
    named: dict[str, dict[str, Any]] = {
        "BLOCK_IO_ERROR": {"node-name": "colo0", "action": "stop", "reason": "No space left"},
        "QUORUM_REPORT_BAD": {"node-name": "colo0", "error": "I/O", "sector-num": 8},
        "JOB_STATUS_CHANGE": {"id": "job0", "status": "concluded"},
        "COLO_EXIT": {"mode": "secondary", "reason": "request"},
        "SHUTDOWN": {"guest": True, "reason": "guest-shutdown"},
        "RESUME": {},
        "GUEST_PANICKED": {"action": "pause"},
        "RESET": {"guest": False, "reason": "host-qmp-system-reset"},
    }
    stamp = {"seconds": 1_700_000_000, "microseconds": 5}
    lines = [{"timestamp": stamp, "event": name, "data": data} for name, data in named.items()]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _requests() -> tuple[bytes, ...]:
    words = (
        *({"command": one} for one in ("status", "checkpoint", "checkpoint-news", "mismatches")),
        *({"command": one} for one in ("history", "may-switch-over", "switchover", "start")),
        *({"command": one} for one in ("planned", "resume", "take-back")),
        {"command": "pause"},
        {"command": "pause", "until_s": 4_000_000_000, "why": "new kernel"},
        {"command": "samples", "after": 1},
        {"command": "may-fail-over", "generation": 4},
        {"command": "failover", "generation": 4},
    )
    return tuple(json.dumps(one).encode() + b"\n" for one in words)


KINDS = {
    "configuration": Kind((_short(EXAMPLE),), _configuration, _text),
    "record": Kind(_records(), _record, _text),
    "peer message": Kind(_messages(), _said, _message),
    "trace": Kind((_TRACE,), _trace, _text),
    "event file": Kind((_event_lines(),), _events, _text),
    "control request": Kind(_requests(), _request, _text),
}
