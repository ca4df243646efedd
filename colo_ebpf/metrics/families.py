# SPDX-License-Identifier: GPL-2.0-only
"""From the daemons' answers to metrics. Pure; names by Prometheus' conventions.

Each row below names a metric and says how it is read from a status. A daemon of another version may
say less: what it does not say is left out, of that VM alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    StateSetMetricFamily,
)

from colo_ebpf import __version__
from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision.actions import State
from colo_ebpf.metrics.answers import Answer, Status, legible, protected, serves
from colo_ebpf.model import Mode

PREFIX = "colo_ebpf_"
LABELS = ("vm", "host")
MODES = tuple(mode.name.lower() for mode in Mode)
DISKS = ("unknown", "replicated", "whole", "overlaid", "failed")
WAYS = ("compare", "periodic")
_MS = 1e-3

Rows = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class _Values:
    """A gauge or a counter; `read` gives the values of its own labels, and the number."""

    name: str
    help: str
    read: Callable[[Status], Rows]
    labels: tuple[str, ...] = ()
    counter: bool = False

    def family(self, answers: Sequence[Answer]) -> Metric:
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        family = kind(PREFIX + self.name, self.help, labels=(*LABELS, *self.labels))
        for answer, rows in _read(answers, self._rows):
            for own, value in rows:
                family.add_metric([*_names(answer), *own], value)
        return family

    def _rows(self, status: Status) -> list[tuple[list[str], float]]:
        return [([legible(one) for one in own], float(value)) for own, value in self.read(status)]


@dataclass(frozen=True, slots=True)
class _States:
    """A state set: 1 for the one that holds, 0 for the others."""

    name: str
    help: str
    states: tuple[str, ...]
    read: Callable[[Status], str]

    def family(self, answers: Sequence[Answer]) -> Metric:
        family = StateSetMetricFamily(PREFIX + self.name, self.help, labels=LABELS)
        for answer, now in _read(answers, self.read):
            family.add_metric(_names(answer), {one: one == now for one in self.states})
        return family


@dataclass(frozen=True, slots=True)
class _Spans:
    """A histogram that the daemon counts."""

    name: str
    help: str
    read: Callable[[Status], dict[str, Any]]

    def family(self, answers: Sequence[Answer]) -> Metric:
        family = HistogramMetricFamily(PREFIX + self.name, self.help, labels=LABELS)
        for answer, found in _read(answers, lambda s: _buckets(self.read(s))):
            buckets, sum_s = found
            family.add_metric(_names(answer), buckets, sum_s)
        return family


def _buckets(plain: dict[str, Any]) -> tuple[list[tuple[str, float]], float]:
    buckets = [(str(bound_s), float(reached)) for bound_s, reached in plain["up_to"]]
    return [*buckets, ("+Inf", float(plain["count"]))], float(plain["sum_s"])


def _names(answer: Answer) -> list[str]:
    return [answer.target.vm, answer.target.host]


def _read(answers: Sequence[Answer], read: Callable[[Status], Any]) -> Iterator[tuple[Answer, Any]]:
    """Of those that say it."""
    for answer in answers:
        if answer.status is not None:
            try:
                found = read(answer.status)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            yield answer, found


# --- how each is read ---------------------------------------------------------------------


def _one(read: Callable[[Status], Any]) -> Callable[[Status], Rows]:
    """Without labels of its own; None: there is nothing to tell."""

    def rows(status: Status) -> Rows:
        value = read(status)
        return [] if value is None else [((), float(value))]

    return rows


def _by(read: Callable[[Status], dict[str, float]]) -> Callable[[Status], Rows]:
    """A value for each value of its one label."""
    return lambda status: [((name,), value) for name, value in read(status).items()]


def _causes(status: Status) -> dict[str, float]:
    """Those that never were are 0: a rate needs them from the start."""
    never: dict[str, float] = {cause.value: 0 for cause in Cause}
    return never | dict(status["checkpoints"]["by_cause"])


def _silences(status: Status) -> dict[str, float]:
    peer = status["peer"]
    return {path: peer[f"{path}_age_ms"] * _MS for path in ("link", "management")}


def _packets(what: str) -> Callable[[Status], Rows]:
    def rows(status: Status) -> Rows:
        for row in status["packets"]:
            yield (row["program"], row["verdict"], row["reason"]), row[what]

    return rows


def _overlays(what: str) -> Callable[[Status], Rows]:
    return lambda status: [((str(one["disk"]),), one[what]) for one in status["overlays"]]


def _progress(what: str) -> Callable[[Status], Rows]:
    def rows(status: Status) -> Rows:
        now = status["progress"]
        return [] if now is None else [((now["what"],), now[what])]

    return rows


def _late(status: Status) -> dict[str, float]:
    patience = status["checkpoints"]["patience"]
    late = {"0.5": patience["late_p50_ms"], "0.99": patience["late_p99_ms"]}
    return {which: ms * _MS for which, ms in late.items() if ms is not None}


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms * _MS


def _age_of_last(status: Status) -> float | None:
    last = status["checkpoints"]["last"]
    return None if last is None else _seconds(last["ago_ms"])


def _disk(status: Status) -> str:
    return "failed" if status["disk"].startswith("failed") else str(status["disk"])


def _generation(status: Status) -> int | None:
    return int(status["record"]["generation"]) if status["record"] else None


_PACKET_LABELS = ("program", "verdict", "reason")
_MEASURES: tuple[_Values | _States | _Spans, ...] = (
    _States(
        "state",
        "What the daemon is about (docs/reference/states.md).",
        tuple(state.value for state in State),
        lambda s: str(s["state"]),
    ),
    _States(
        "mode",
        "What the data plane does with the VM's frames.",
        MODES,
        lambda s: str(s["mode"]),
    ),
    _States("disk", "What the image here is worth.", DISKS, _disk),
    _States(
        "checkpoint_mode",
        "How checkpoints come about now.",
        WAYS,
        lambda s: str(s["checkpoints"]["mode"]),
    ),
    _Values("serving", "1 if clients are served by the VM on this host.", _one(serves)),
    _Values("protected", "1 if the pair would survive one failure now.", _one(protected)),
    _Values("paused", "1 while an operator has paused protection.", _one(lambda s: s["paused"])),
    _Values(
        "harmed",
        "1 while devices or programs of the data plane here are not as they should be.",
        _one(lambda s: bool(s["lacks"])),
    ),
    _Values("record_generation", "Of the arbiter's record, as last read here.", _one(_generation)),
    _Values(
        "vm_alive",
        "1 if a QEMU of the VM runs on this host.",
        _one(lambda s: bool(s["vm_process"] and s["vm_process"]["alive"])),
    ),
    _Values(
        "guest_panicked",
        "1 from a panic of the guest to its reboot.",
        _one(lambda s: s["guest"]["panicked"]),
    ),
    _Values(
        "guest_reboots",
        "Reboots of the guest that this daemon saw.",
        _one(lambda s: s["guest"]["reboots"]),
        counter=True,
    ),
    _Values(
        "checkpoints",
        "Checkpoints that the secondary has loaded, by what asked for them.",
        _by(_causes),
        ("cause",),
        counter=True,
    ),
    _Values(
        "checkpoints_unproven",
        "Checkpoints that were not proven and were taken again.",
        _one(lambda s: s["checkpoints"]["unproven"]),
        counter=True,
    ),
    _Values(
        "checkpoints_for_age",
        "Checkpoints asked for because an answer waited, by what the secondary's VM did.",
        _by(lambda s: s["checkpoints"]["for_age"]),
        ("why",),
        counter=True,
    ),
    _Spans(
        "checkpoint_pause_seconds",
        "For how long a checkpoint paused the VM.",
        lambda s: dict(s["checkpoints"]["pauses"]),
    ),
    _Spans(
        "checkpoint_reaction_seconds",
        "From the first cause of a checkpoint to its trigger.",
        lambda s: dict(s["checkpoints"]["reactions"]),
    ),
    _Values("checkpoint_age_seconds", "Since the last checkpoint was loaded.", _one(_age_of_last)),
    _Values(
        "answer_late_seconds",
        "How late the secondary's VM gave the same answer lately.",
        _by(_late),
        ("quantile",),
    ),
    _Values("held_frames", "Frames that wait at the primary.", _one(lambda s: s["held"]["frames"])),
    _Values("held_bytes", "Bytes of these frames.", _one(lambda s: s["held"]["bytes"])),
    _Values("hold_slots", "Frames that can wait at once.", _one(lambda s: s["held"]["slots"])),
    _Values(
        "held_oldest_seconds",
        "How long the frame that came first has waited.",
        _one(lambda s: _seconds(s["held"]["oldest_ms"])),
    ),
    _Values(
        "packets",
        "Packets that the data plane saw, and what became of them.",
        _packets("packets"),
        _PACKET_LABELS,
        counter=True,
    ),
    _Values(
        "packet_bytes",
        "Bytes of these packets.",
        _packets("bytes"),
        _PACKET_LABELS,
        counter=True,
    ),
    _Values(
        "events_lost",
        "Records of the data plane that found no room on their way to the daemon.",
        _one(lambda s: s["live"]["events_lost"]),
        counter=True,
    ),
    _Values(
        "peer_silence_seconds",
        "Since the peer was last heard on a path.",
        _by(_silences),
        ("path",),
    ),
    _Values(
        "peer_timeout_seconds",
        "Silence after which the peer counts as dead.",
        _one(lambda s: _seconds(s["peer"]["timeout_ms"])),
    ),
    _Values(
        "peer_longest_silence_seconds",
        "The longest silence of the peer's daemon on the link since it runs.",
        _one(lambda s: _seconds(s["peer"]["link_longest_ms"])),
    ),
    _Values(
        "peer_long_silences",
        "Silences that left less than 40 % of the time from rest to the timeout.",
        _by(lambda s: s["peer"]["long_silences"]),
        ("path",),
        counter=True,
    ),
    _Values(
        "peer_frames_silence_seconds",
        "Since a frame of the peer's data plane arrived over the link.",
        _one(lambda s: _seconds(s["peer"]["plane_age_ms"])),
    ),
    _Values(
        "peer_refused",
        "Heartbeats that were not accepted, by why.",
        _by(lambda s: s["peer"]["refused"]),
        ("why",),
        counter=True,
    ),
    _Values(
        "pairings_failed",
        "Attempts to make a replica that came to nothing.",
        _one(lambda s: s["pairings_failed"]),
        counter=True,
    ),
    _Values(
        "overlay_used_bytes",
        "What the replica's overlays of a disk take.",
        _overlays("used_bytes"),
        ("disk",),
    ),
    _Values(
        "overlay_limit_bytes",
        "What they may take; at half of it a checkpoint is taken.",
        _overlays("limit_bytes"),
        ("disk",),
    ),
    _Values(
        "overlay_free_bytes",
        "What is left in their file system.",
        _overlays("free_bytes"),
        ("disk",),
    ),
    _Values(
        "copied_bytes",
        "Of what is being copied to a new replica: done.",
        _progress("done"),
        ("what",),
    ),
    _Values(
        "to_copy_bytes",
        "Of what is being copied to a new replica: all of it.",
        _progress("total"),
        ("what",),
    ),
)


def families(answers: Sequence[Answer]) -> Iterator[Metric]:
    """All of them, in one order."""
    build = GaugeMetricFamily(
        f"{PREFIX}build_info", "The version of what reads the daemons.", labels=("version",)
    )
    build.add_metric([__version__], 1)
    yield build
    yield from _own(answers)
    for measure in _MEASURES:
        yield measure.family(answers)


def _own(answers: Sequence[Answer]) -> Iterator[Metric]:
    """What this process knows by itself."""
    up = GaugeMetricFamily(
        f"{PREFIX}daemon_up", "1 if the daemon of the VM on this host answers.", labels=LABELS
    )
    took = GaugeMetricFamily(
        f"{PREFIX}daemon_answer_seconds", "How long its last answer took.", labels=LABELS
    )
    arbiter = GaugeMetricFamily(
        f"{PREFIX}arbiter_up", "1 if this host can read the arbiter's record.", labels=LABELS
    )
    read = GaugeMetricFamily(
        f"{PREFIX}arbiter_answer_seconds", "How long reading it took.", labels=LABELS
    )
    for answer in answers:
        up.add_metric(_names(answer), float(answer.status is not None))
        if answer.status is not None:
            took.add_metric(_names(answer), answer.took_s)
        if answer.arbiter_error is not None:
            arbiter.add_metric(_names(answer), float(not answer.arbiter_error))
            read.add_metric(_names(answer), answer.arbiter_s)
    yield from (up, took, arbiter, read)


def sample_names() -> frozenset[str]:
    """Every name that a rule or a dashboard may ask for."""
    found = {
        family.name + ("_total" if family.type == "counter" else "") for family in families(())
    }
    for measure in _MEASURES:
        if isinstance(measure, _Spans):
            name = PREFIX + measure.name
            found |= {f"{name}{end}" for end in ("_bucket", "_count", "_sum")}
            found.discard(name)
    return frozenset(found)
