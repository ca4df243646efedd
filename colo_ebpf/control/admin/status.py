# SPDX-License-Identifier: GPL-2.0-only
"""What `colo-ebpf status` shows: one dictionary of plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from colo_ebpf.clock import ago_ns
from colo_ebpf.control.admin.samples import Samples
from colo_ebpf.control.checkpoint.hold_timer import Patience
from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.record import Kind
from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.control.key_keeper import KeyKeeper
from colo_ebpf.control.link_security import Seals, unsealed
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import Path
from colo_ebpf.control.state import atomic
from colo_ebpf.model import Counter

if TYPE_CHECKING:
    from colo_ebpf.control.core.core import Core
    from colo_ebpf.control.executor import Steps
    from colo_ebpf.control.qemu.process import QemuMachine
    from colo_ebpf.datapath.plane import DataPlane

_ROLES = {
    State.PRIMARY: "primary",
    State.PAIRING: "primary",
    State.SECONDARY: "secondary",
    State.JOINING: "secondary",
    State.SOLO: "solo",
}
_HISTORY = 60


class Parts(Protocol):
    """The parts of a daemon that operators ask about."""

    core: Core
    plane: DataPlane
    machine: QemuMachine
    steps: Steps
    accel_why: str
    samples: Samples
    keys: KeyKeeper
    link: Seals | None  # None: it is not sealed

    def status(self) -> dict[str, Any]:
        """See `status`."""


def status(daemon: Parts, now_ns: int) -> dict[str, Any]:
    """Plain values only: what is sent over the control socket as JSON."""
    core = daemon.core
    record, turn, held = core.record, daemon.plane.turn(), daemon.plane.held()
    age = None if held.oldest_ns is None else ago_ns(held.oldest_ns, now_ns) / MS
    return {
        "vm": core.who.vm,
        "host": core.who.host,
        "state": core.decision.state.value,
        "since_ms": ago_ns(core.state_since_ns, now_ns) / MS,
        "sentence": core.decision.sentence,
        "role": _ROLES.get(core.decision.state, "none"),
        "protected": not core.decision.gap,
        "unprotected_why": core.decision.gap,
        "lacks": core.harm.said,
        "paused": core.pause.on,
        "pause": _pause(core.pause),
        "mode": daemon.plane.mode().name.lower(),
        "hooks": daemon.plane.wiring.by.value,
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
        "key": daemon.keys.status(),
        "link": daemon.link.status(now_ns) if daemon.link else unsealed(),
        "disk": _disk(daemon),
        "overlays": _overlays(daemon),
        "healed": core.healing.last,
        "last_attempt": _last_attempt(daemon),
        "pairings_failed": core.back_off.total,
        "arbiter_error": core.arbiter_error,
        "unwritten": atomic.unwritten(),
        "step": type(core.attempt.running).__name__ if core.attempt.running else None,
        "progress": _progress(daemon),
        "history": history(daemon, now_ns)[-_HISTORY:],
    }


def history(daemon: Parts, now_ns: int) -> list[dict[str, Any]]:
    """The last sentences, the newest last."""
    return [
        {"ago_ms": (now_ns - at_ns) // MS, "at_ns": at_ns, "sentence": sentence}
        for at_ns, sentence in daemon.core.history
    ]


def _pause(pause: Pause) -> dict[str, Any]:
    return {"until_s": pause.until_s, "why": pause.why, "sentence": pause.sentence()}


def paused(daemon: Parts, now_ns: int) -> dict[str, Any]:
    """Is protection paused here, and does the other host say the same?"""
    core = daemon.core
    state, heard = core.peer.state, any(_heard(core, path, now_ns) for path in Path)
    return {
        "paused": core.pause.on,
        **_pause(core.pause),
        "peer": core.who.peer,
        "peer_heard": heard,
        "peer_agrees": heard and state is not None and state.pause == core.pause,
    }


def _heard(core: Core, path: Path, now_ns: int) -> bool:
    """The other daemon, on this path and lately."""
    age_ns = core.peer.age_ns(path, now_ns)
    return core.peer.state is not None and age_ns <= core.timing.peer_timeout_ns


def checkpoint_news(daemon: Parts, now_ns: int) -> dict[str, Any]:
    """For who asked for a checkpoint: is it pending, can it be taken, which one was the last?"""
    core, primary = daemon.core, daemon.core.checkpoints.primary
    last = primary.loaded
    return {
        "can": core.checkpointing,
        "sentence": core.decision.sentence,
        "pending": Cause.OPERATOR in primary.pending,
        "last": None if last is None else {**_loaded(last, now_ns), "resumed_ns": last.resumed_ns},
    }


def planned(daemon: Parts) -> dict[str, Any]:
    """The planned operation under way, and the last answer to one."""
    core = daemon.core
    request, answer = core.requests.request, core.requests.answer
    return {
        "token": request.token if request else None,
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


def _vm(daemon: Parts) -> dict[str, Any] | None:
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


def _guest(daemon: Parts) -> dict[str, Any]:
    guest = daemon.core.checkpoints.guest
    off = guest.off_at_s is not None
    return {"powered_off": off, "panicked": guest.panicked, "reboots": guest.resets}


def _checkpoints(daemon: Parts, now_ns: int) -> dict[str, Any]:
    primary, secondary = daemon.core.checkpoints.primary, daemon.core.checkpoints.secondary
    last, waits = primary.loaded, daemon.core.checkpoints.waits
    return {
        "stage": primary.stage.value,
        "by_cause": {cause.value: count for cause, count in primary.by_cause.items()},
        "total": sum(primary.by_cause.values()),
        "unproven": primary.unproven_turns,
        "pauses": primary.pauses.plain(),
        "reactions": primary.reactions.plain(),
        "last": None if last is None else _loaded(last, now_ns),
        "recent": [_loaded(one, now_ns) for one in primary.recent],
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


def _loaded(one: Loaded, now_ns: int) -> dict[str, Any]:
    return {
        "ago_ms": ago_ns(one.resumed_ns, now_ns) / MS,
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


def _peer(daemon: Parts, now_ns: int) -> dict[str, Any]:
    peer = daemon.core.peer
    state = peer.state
    heard_ns = daemon.plane.link_heard_ns()
    return {
        "name": peer.host,
        "state": state.state if state else None,
        "health": state.health.value if state else None,
        "link_heard": _heard(daemon.core, Path.LINK, now_ns),
        "management_heard": _heard(daemon.core, Path.MANAGEMENT, now_ns),
        "plane_heard": peer.hears_plane(daemon.core.timing.peer_timeout_ns, now_ns),
        "link_age_ms": peer.age_ns(Path.LINK, now_ns) / MS,
        "timeout_ms": daemon.core.timing.peer_timeout_ns / MS,
        "link_longest_ms": peer.longest_ns(Path.LINK) / MS,
        "long_silences": {path.value: peer.long_silences(path) for path in Path},
        "management_age_ms": peer.age_ns(Path.MANAGEMENT, now_ns) / MS,
        "plane_age_ms": ago_ns(heard_ns, now_ns) / MS if heard_ns else None,
        "lacks": state.lacks if state else "",
        "arbiter_error": state.arbiter if state else "",
        "refused": {why.name.lower(): count for why, count in peer.refusals.items()},
        "error": peer.last_error,
    }


def _disk(daemon: Parts) -> str:
    core = daemon.core
    if why := core.unfit():
        return f"failed: {why}"
    if core.record is None:
        return "unknown"
    if core.record.kind is Kind.PAIRED:
        return "replicated"
    return core.record.disk.value


def _last_attempt(daemon: Parts) -> dict[str, str]:
    """To pair, if it came to nothing: why it was given up, and what the replica's QEMU said."""
    core, peer = daemon.core, daemon.core.peer.state
    return {
        "given_up": core.back_off.why or (peer.gave_up if peer else ""),
        "qemu_said": core.last_words or (peer.last_words if peer else ""),
    }


def _overlays(daemon: Parts) -> list[dict[str, int]]:
    core = daemon.core
    uses = core.vm.overlay_use() if core.vm is not None and core.is_replica() else ()
    return [asdict(use) for use in uses]


def _progress(daemon: Parts) -> dict[str, Any] | None:
    progress = daemon.steps.progress
    if progress is None or daemon.core.attempt.running is None:
        return None
    return {**asdict(progress), "left_s": progress.left_s}
