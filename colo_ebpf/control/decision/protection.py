# SPDX-License-Identifier: GPL-2.0-only
"""Would a single failure now be survived? Part of `decide`; pure.

*Protected* is a promise: whatever breaks next, a host, a VM, a disk, a wire, the VM serves on. So
one thing that is broken already, on either side, ends it, however well the VM serves meanwhile.
What nobody has noticed yet nobody can say: that takes `peer_timeout_ns`.
"""

from __future__ import annotations

from colo_ebpf.control.decision.actions import Decision, State
from colo_ebpf.control.decision.snapshot import Snapshot

_PAIRED = (State.PRIMARY, State.SECONDARY)


def gap(s: Snapshot, d: Decision) -> str:
    """Why it might not be; "" if it would."""
    if d.state not in _PAIRED or s.record is None:
        return d.sentence
    return next(filter(None, (*_here(s, d), *_there(s), *_between(s))), "")


def _here(s: Snapshot, d: Decision) -> tuple[str, ...]:
    vm = s.vm
    return (
        "paused by the operator" if s.paused else "",
        d.sentence if d.step is not None or s.pending is not None else "",
        "" if vm is not None and vm.alive and vm.fit else f"the VM of {s.who.host} is unfit",
        "COLO has ended" if vm is not None and vm.colo_exit_ns is not None else "",
        s.checkpoints.broken,
        s.lacks,
        f"the arbiter does not answer: {s.read_error}" if s.read_error else "",
        f"the arbiter fails: {s.arbiter_error}" if s.arbiter_error else "",
    )


def _there(s: Snapshot) -> tuple[str, ...]:
    state, peer = s.peer.state, s.who.peer
    if state is None or not s.peer_heard:
        return (f"{peer} is not heard",)
    paired = state.state in {one.value for one in _PAIRED}
    return (
        f"the daemon of {peer} is away" if s.peer.away_since_ns is not None else "",
        f"the VM of {peer} is gone" if s.peer_vm_gone(state.instance) else "",
        "" if state.fit else f"the VM of {peer} is unfit",
        f"{peer} says: {state.lacks}" if state.lacks else "",
        f"{peer} says that the arbiter fails: {state.arbiter}" if state.arbiter else "",
        "" if paired else f"{peer} says that it is {state.state}",
    )


def _between(s: Snapshot) -> tuple[str, ...]:
    cut = s.link_cut
    return ("the link does not carry all that a pair needs" if cut else "",)
