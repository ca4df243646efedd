# SPDX-License-Identifier: GPL-2.0-only
"""The VM's history on this host: each change of state, why, by whom, for how long it was silent.

Values and what they are made of; pure. `history_file` keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.snapshot import MS

FILE = "history.jsonl"  # in the state directory
MOST_BYTES = 256 << 10  # some 1000 changes
_SERVES = (State.SOLO, State.PAIRING, State.PRIMARY)
_PAIR = (State.PRIMARY, State.SECONDARY)
# In which a VM may stay; what an operator asked for is over then.
_RESTS = (*_SERVES, State.SECONDARY, State.STANDBY, State.OFF, State.STUCK)
OPERATOR, ITSELF = "operator", "itself"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=False, kw_only=True):
    """One change. `silence_ms`: for how long no host served, as far as this one saw."""

    at_s: float  # Unix time
    host: str
    generation: int
    old: str = msgspec.field(name="from")
    new: str = msgspec.field(name="to")
    why: str
    by: str
    silence_ms: float | None = None


class History:
    """What the next entry depends on of those before."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._asked = False  # by an operator, what is under way
        self._heard_ns: int | None = None  # the last word of a pair that has ended

    def changed(
        self,
        old: State,
        new: State,
        why: str,
        *,
        generation: int,
        asked: bool,
        heard_ns: int,
        now_ns: int,
        at_s: float,
    ) -> Entry:
        """`asked`: an operator asked for it; `heard_ns`: when the other host was heard last."""
        self._asked = self._asked or asked
        by = OPERATOR if self._asked else ITSELF
        if new in _RESTS:
            self._asked = False
        return Entry(
            at_s=at_s,
            host=self._host,
            generation=generation,
            old=old.value,
            new=new.value,
            why=why,
            by=by,
            silence_ms=self._silence_ms(old, new, heard_ns, now_ns),
        )

    def said(self, why: str, *, state: State, generation: int, at_s: float) -> Entry:
        """An operator's word that changes no state: a pause."""
        return Entry(
            at_s=at_s,
            host=self._host,
            generation=generation,
            old=state.value,
            new=state.value,
            why=why,
            by=OPERATOR,
        )

    def _silence_ms(self, old: State, new: State, heard_ns: int, now_ns: int) -> float | None:
        """Known to the host that serves in the end. A replica that is lost silences nobody longer
        than a pair may be silent."""
        if old in _PAIR and new not in _PAIR:
            self._heard_ns = heard_ns
        if new not in _SERVES or self._heard_ns is None:
            return None
        since_ns, self._heard_ns = self._heard_ns, None
        return max(0, now_ns - since_ns) / MS


def entries(lines: Iterable[bytes]) -> list[Entry]:
    """Of a file; what a power cut left of a line is no entry."""
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.DecodeError, RecursionError):
            continue
    return found


def line(entry: Entry) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(entry) + b"\n"
