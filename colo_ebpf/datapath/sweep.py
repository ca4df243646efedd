# SPDX-License-Identifier: GPL-2.0-only
"""Takes entries of ended connections out of the tables, a few at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable

from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.datapath.bpf.syscalls import RawMap, Runner
from colo_ebpf.datapath.maps import reap

_PLACES = 256  # COLO_AGE_MAX: places of the flow table that one run looks at
_BUSY = 1 / 16  # of the flow table's entries: below, a run finds next to nothing, and rests
REST_NS = 500_000_000


class Sweep:
    """Of the flow table by `colo_age`, of the lasting offsets from here."""

    def __init__(
        self, program: int, flows: int, lasting: RawMap, live: Callable[[LiveWord], int]
    ) -> None:
        self._flows, self._live = flows, live
        self._run = Runner(program, bytes(64))
        self._lasting = reap.Reaper(lasting)
        self._at = self._age_due_ns = self._due_ns = 0

    def look(self, now_ns: int) -> None:
        """The next few, if it is time to."""
        if now_ns < self._due_ns:
            return
        if now_ns >= self._age_due_ns:
            self._age(now_ns)
        if now_ns >= self._lasting.due_ns:
            self._lasting.step(now_ns, lambda raw: reap.lasting_ended(raw, now_ns))
        self._due_ns = min(self._age_due_ns, self._lasting.due_ns)

    def _age(self, now_ns: int) -> None:
        """The next places of the flow table; in every beat only if there is much to find."""
        used = self._live(LiveWord.FLOWS)
        if used:
            self._run.put(struct.pack("=I", self._at))
            self._run.run()
            self._at = (self._at + _PLACES) % (2 * self._flows)
        if used < self._flows * _BUSY:
            self._age_due_ns = now_ns + REST_NS
