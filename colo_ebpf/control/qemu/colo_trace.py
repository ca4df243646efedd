# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU's COLO trace says: of a secondary's state (design: settled or not), and to a primary
of what its secondary has loaded. Pure.

Lines of `-trace 'colo_*' -D file` end in ``colo_send_message Send 'vmstate-received' message``
or ``colo_vm_state_change Change 'run' => 'stop'``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from colo_ebpf.model import Settled

_SENT = re.compile(r"colo_send_message .*'(?P<message>[a-z-]+)'")
_TOLD = re.compile(r"colo_receive_message .*'vmstate-loaded'")
_CHANGE = re.compile(r"colo_vm_state_change .*'\w+' => '(?P<to>\w+)'")


@dataclass(frozen=True, slots=True)
class TraceState:
    """Where the VM stands after the lines read so far."""

    stopped: bool = False  # a STOP without its RESUME
    received: bool = False  # vmstate-received sent since that STOP
    loads: int = 0  # vmstate-loaded sent
    new: bool = False  # the last STOP ended in a load
    told: int = 0  # vmstate-loaded received: a primary's, of its secondary


def follow(state: TraceState, lines: Sequence[bytes]) -> TraceState:
    """The state after some more lines of the trace."""
    for raw in lines:
        line = raw.decode(errors="replace")
        if sent := _SENT.search(line):
            if sent["message"] == "vmstate-received":
                state = replace(state, received=True)
            elif sent["message"] == "vmstate-loaded":
                state = replace(state, loads=state.loads + 1)
        elif _TOLD.search(line):
            state = replace(state, told=state.told + 1)
        elif change := _CHANGE.search(line):
            if change["to"] == "stop":
                state = replace(state, stopped=True, received=False, new=False)
            elif change["to"] == "run":
                state = replace(state, stopped=False, new=state.stopped)
    return state


def settled(state: TraceState, colo_exited: bool) -> Settled:
    """Whether the VM's state is whole, and which one it is."""
    if not state.stopped:
        return Settled.NEW if state.new else Settled.CURRENT
    if not colo_exited:
        return Settled.OPEN
    return Settled.BROKEN if state.received else Settled.OLD
