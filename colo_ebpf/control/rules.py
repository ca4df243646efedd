# SPDX-License-Identifier: GPL-2.0-only
"""Small questions that `decide` and `pairing` both ask of a snapshot."""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.facts import Decision, Read, Snapshot, Step, VmFacts
from colo_ebpf.model import Pairing, Settled, VmHealth

NO_VM = (VmHealth.NONE, VmHealth.GONE, VmHealth.BROKEN)


def rested(s: Snapshot, step: Step, rest_ns: int | None = None) -> Step | None:
    """The step, unless one of its kind has just failed."""
    rest_ns = s.timing.retry_ns if rest_ns is None else rest_ns
    failed = s.failure
    if failed and type(failed.step) is type(step) and s.now_ns - failed.at_ns < rest_ns:
        return None
    return step


def failed(s: Snapshot, kind: type) -> str:
    """Why the last step of that kind failed ("" if it did not)."""
    return s.failure.error if s.failure and isinstance(s.failure.step, kind) else ""


def own_vm(s: Snapshot, instance: str) -> VmFacts | None:
    """Our VM if it is this instance, alive and whole."""
    vm = s.vm
    if vm is None or not vm.alive or vm.instance != instance or vm.settled is Settled.BROKEN:
        return None
    return vm


def paired_with(s: Snapshot, vni: int) -> Pairing:
    """What the link may carry."""
    return Pairing(vni, s.who.peer_link_address)


def looked_up(s: Snapshot, d: Decision) -> Decision:
    """A swap was sent that is not wanted any more, and whether it was written nobody said: look
    now and then, since it may yet be."""
    due = s.now_ns - s.last_read_ns >= 10 * s.timing.retry_ns
    if s.pending is None or s.wish is not None or not due:
        return d
    return replace(d, step=rested(s, Read()))
