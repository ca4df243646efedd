# SPDX-License-Identifier: GPL-2.0-only
"""What `colo-ebpf status` shows: one dictionary of plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from colo_ebpf.control.epoch import Loaded
from colo_ebpf.control.facts import MS, State
from colo_ebpf.control.patience import Patience
from colo_ebpf.control.peer import Path
from colo_ebpf.control.record import Kind
from colo_ebpf.model import Counter

if TYPE_CHECKING:
    from colo_ebpf.control.daemon import Daemon

_ROLES = {
    State.PRIMARY: "primary",
    State.PAIRING: "primary",
    State.SECONDARY: "secondary",
    State.JOINING: "secondary",
    State.SOLO: "solo",
}
_HISTORY = 60


def status(daemon: Daemon, now_ns: int) -> dict[str, Any]:
    """Plain values only: what is sent over the control socket as JSON."""
    core = daemon.core
    record, turn, held = core.record, daemon.plane.turn(), daemon.plane.held()
    age = None if held.oldest_ns is None else (now_ns - held.oldest_ns) / MS
    return {
        "vm": core.who.vm,
        "host": core.who.host,
        "state": core.decision.state.value,
        "sentence": core.decision.sentence,
        "role": _ROLES.get(core.decision.state, "none"),
        "protected": core.decision.state in (State.PRIMARY, State.SECONDARY) and not core.pause.on,
        "paused": core.pause.on,
        "mode": daemon.plane.mode().name.lower(),
        "epoch": turn.epoch,
        "phase": turn.phase.name.lower(),
        "record": None
        if record is None
        else {
            "generation": record.generation,
            "kind": record.kind.value,
            "text": record.describe(),
        },
        "vm_process": _vm(daemon),
        "guest": _guest(daemon),
        "checkpoints": _checkpoints(daemon, now_ns),
        "held": {
            "frames": held.frames,
            "bytes": held.bytes,
            "slots": held.slots,
            "oldest_ms": age,
        },
        "packets": [_counter(row) for row in daemon.plane.counters()],
        "live": daemon.plane.live(),
        "peer": _peer(daemon, now_ns),
        "disk": _disk(daemon),
        "overlays": _overlays(daemon),
        "step": type(core.running).__name__ if core.running else None,
        "progress": _progress(daemon),
        "history": history(daemon, now_ns)[-_HISTORY:],
    }


def history(daemon: Daemon, now_ns: int) -> list[dict[str, Any]]:
    """The last sentences, the newest last."""
    return [
        {"ago_ms": (now_ns - at_ns) // MS, "at_ns": at_ns, "sentence": sentence}
        for at_ns, sentence in daemon.core.history
    ]


def paused(daemon: Daemon, now_ns: int) -> dict[str, Any]:
    """Is protection paused here, and does the other host say the same?"""
    core = daemon.core
    state = core.peer.state
    ages_ns = [core.peer.age_ns(path, now_ns) for path in Path]
    heard = state is not None and min(ages_ns) <= core.timing.peer_timeout_ns
    return {
        "paused": core.pause.on,
        "peer": core.who.peer,
        "peer_heard": heard,
        "peer_agrees": heard and state is not None and state.pause == core.pause,
    }


def planned(daemon: Daemon) -> dict[str, Any]:
    """The planned operation under way, and the last answer to one."""
    core = daemon.core
    wish, answer = core.wishes.wish, core.wishes.answer
    return {
        "token": wish.token if wish else None,
        "sentence": core.decision.sentence,
        "answer": None
        if answer is None
        else {
            "token": answer.token,
            "done": answer.done,
            "sentence": answer.sentence,
            "outage_ms": answer.outage_ns / MS,
        },
    }


def _vm(daemon: Daemon) -> dict[str, Any] | None:
    vm = daemon.core.vm
    if vm is None:
        return None
    return {
        "instance": vm.instance,
        "pid": vm.pid,
        "alive": vm.alive,
        "started_as": vm.role.value,
        "accel": daemon.machine.accel,
        "accel_why": daemon.accel_why,
    }


def _guest(daemon: Daemon) -> dict[str, Any]:
    guest = daemon.core.checkpoints.guest
    off = guest.off_at_s is not None
    return {"powered_off": off, "panicked": guest.panicked, "reboots": guest.resets}


def _checkpoints(daemon: Daemon, now_ns: int) -> dict[str, Any]:
    primary, secondary = daemon.core.checkpoints.primary, daemon.core.checkpoints.secondary
    last, waits = primary.loaded, daemon.core.checkpoints.waits
    return {
        "stage": primary.stage.value,
        "by_cause": {cause.value: count for cause, count in primary.by_cause.items()},
        "total": sum(primary.by_cause.values()),
        "unproven": primary.unproven_turns,
        "last": None
        if last is None
        else {**_loaded(last), "ago_ms": (now_ns - last.resumed_ns) / MS},
        "recent": [_loaded(one) for one in primary.recent],
        "loaded_epoch": secondary.loaded,
        "wanted": daemon.core.checkpoints.want,
        "mode": waits.pace.way.value,
        "mode_why": waits.pace.why,
        "patience": _patience(waits.patience, now_ns),
        "for_age": waits.ages,
        "longest_epoch_ms": waits.bound.epoch_ns / MS,
    }


def _patience(patience: Patience, now_ns: int) -> dict[str, Any]:
    """How late the SVM was lately, and how long it may work on an answer now."""
    yardstick = patience.yardstick
    late = {
        "late_p50_ms": yardstick.usual_ns(0.5),
        "late_p99_ms": yardstick.usual_ns(),
        "late_after_load_p99_ms": yardstick.loaded_ns(),
        "may_work_ms": patience.may_wait_ns(now_ns),
    }
    in_ms = {name: None if ns is None else ns / MS for name, ns in late.items()}
    return {**in_ms, "doubled": patience.doubled}


def _loaded(one: Loaded) -> dict[str, Any]:
    return {
        "epoch": one.epoch,
        "cause": one.cause.value,
        "pause_ms": one.pause_ns / MS,
        "reaction_ms": one.reaction_ns / MS,
    }


def _counter(row: Counter) -> dict[str, Any]:
    return {
        "program": row.program,
        "verdict": row.verdict,
        "reason": row.reason,
        "packets": row.packets,
        "bytes": row.bytes,
    }


def _peer(daemon: Daemon, now_ns: int) -> dict[str, Any]:
    peer = daemon.core.peer
    state = peer.state
    heard_ns = daemon.plane.link_heard_ns()
    return {
        "name": peer.host,
        "state": state.state if state else None,
        "health": state.health.value if state else None,
        "link_age_ms": peer.age_ns(Path.LINK, now_ns) / MS,
        "link_longest_ms": peer.longest_ns(Path.LINK) / MS,
        "management_age_ms": peer.age_ns(Path.MANAGEMENT, now_ns) / MS,
        "plane_age_ms": (now_ns - heard_ns) / MS if heard_ns else None,
        "refused": {why.name.lower(): count for why, count in peer.refusals.items()},
        "error": peer.last_error,
    }


def _disk(daemon: Daemon) -> str:
    core = daemon.core
    if why := core.unfit():
        return f"failed: {why}"
    if core.record is None:
        return "unknown"
    if core.record.kind is Kind.PAIRED:
        return "replicated"
    return core.record.disk.value


def _overlays(daemon: Daemon) -> list[dict[str, int]]:
    core = daemon.core
    uses = core.vm.overlay_use() if core.vm is not None and core.is_replica() else ()
    return [asdict(use) for use in uses]


def _progress(daemon: Daemon) -> dict[str, Any] | None:
    progress = daemon.steps.progress
    if progress is None or daemon.core.running is None:
        return None
    return {"what": progress.what, "done": progress.done, "total": progress.total}
