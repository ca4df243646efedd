# SPDX-License-Identifier: GPL-2.0-only
"""How much what the daemon says matters, as levels of `logging`. Pure.

ERROR: an operator has to act. WARNING: the VM is not protected, something failed, or who serves
changes. INFO: all else.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import ERROR, INFO, WARNING

from colo_ebpf.control.decision.actions import Decision, State
from colo_ebpf.model import VmEvent, VmEventKind

PROTECTED = frozenset({"primary of a protected pair", "secondary of a protected pair"})
_CHANGES_HOSTS = (State.CLAIMED, State.LOST, State.ENDING)
_PAIR = (State.PRIMARY, State.SECONDARY)
_WITHHELD = "output stays withheld"


def of_decision(old: Decision, new: Decision, errors: Iterable[str]) -> int:
    """Of the new one's sentence. `errors`: what failed last, as sentences would quote it."""
    said = new.sentence
    if new.state is State.STUCK:
        return ERROR
    fails = any(error in said for error in errors if error)
    alone = new.state is State.SOLO and old.state is not State.SOLO
    unwell = new.state in _PAIR and said not in PROTECTED
    grave = fails or alone or unwell or _WITHHELD in said or new.state in _CHANGES_HOSTS
    return WARNING if grave else INFO


def of_event(event: VmEvent) -> int:
    """Of what is told of a VM's event."""
    ended = event.kind is VmEventKind.SHUTDOWN and not event.data.get("guest")
    return WARNING if ended or event.kind is VmEventKind.PANICKED else INFO
