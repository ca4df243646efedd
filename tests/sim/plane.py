# SPDX-License-Identifier: GPL-2.0-only
"""The data plane of a simulated host: mode, turn, pairing, and who hears whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from colo_ebpf.model import (
    FlushReport,
    HeldReport,
    Lateness,
    Mode,
    Pairing,
    Phase,
    PlaneEvent,
    Turn,
    Waiting,
)
from tests.sim.world import TIMING

if TYPE_CHECKING:
    from tests.sim.answers import Answers
    from tests.sim.host import Host


class ToyPlane:
    """Mode, turn, pairing. It outlives the daemon."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mode, self._turn = Mode.WITHHOLD, Turn(0, Phase.OPEN)
        self.pairing: Pairing | None = None
        self.heard_ns = 0
        self._beats, self._beats_until_ns, self.beats_alone = False, 0, True
        self.answers: Answers | None = None

    def set_mode(self, mode: Mode) -> None:
        self._mode = mode

    def mode(self) -> Mode:
        return self._mode

    def set_turn(self, epoch: int, phase: Phase) -> None:
        self._turn = Turn(epoch, phase)

    def turn(self) -> Turn:
        return self._turn

    def set_pairing(self, pairing: Pairing | None) -> None:
        self.pairing, self.heard_ns = pairing, 0

    def keep_offsets(self, epoch: int) -> None: ...

    def learn_offsets(self, entries: list[bytes]) -> None: ...

    def flush(self) -> FlushReport:
        return self.answers.flush() if self.answers else FlushReport(0, 0)

    def repeat(self) -> int:
        return 0

    def held(self) -> HeldReport:
        return HeldReport(0, 0, None, 1)

    def held_frames(self) -> int:
        return len(self.answers.held) if self.answers else 0

    def waiting(self) -> Waiting:
        return self.answers.waiting() if self.answers else Waiting()

    def held_ages(self) -> tuple[int, int]:
        return self.answers.ages() if self.answers else (0, 0)

    def held_ever(self) -> int:
        return self.answers.heads if self.answers else 0

    def compared_frames(self) -> int:
        return self.answers.compared if self.answers else 0

    def lateness(self) -> Lateness:
        return self.answers.lateness() if self.answers else Lateness()

    def loaded(self, at_ns: int) -> None:
        if self.answers:
            self.answers.loaded_ns = at_ns

    def rearm_held(self) -> None:
        if self.answers:
            self.answers.armed = True

    def link_heard_ns(self) -> int:
        return self.heard_ns

    def beat(self, now_ns: int) -> None:
        """By itself, until its daemon has been away for some heartbeats."""
        self._beats_until_ns = now_ns + 5 * TIMING.heartbeat_ns
        if not self._beats:
            self._beats = True
            self._beat()

    def _beat(self) -> None:
        """To the other plane, if both are of one pairing."""
        host, world = self._host, self._host.world
        gone = host.plane is not self or host.now_ns >= self._beats_until_ns
        self._beats = not gone and self.pairing is not None
        if self.pairing is None or not self._beats:
            return
        other, vni = host.other.plane, self.pairing.vni

        def arrive() -> None:
            if other.pairing is not None and other.pairing.vni == vni:
                other.heard_ns = host.other.now_ns

        if world.carries_frames(host.name):
            world.after(world.delay_ns(0.05, 1), arrive)
        world.after(world.delay_ns(49, 51), self._beat)

    def subscribe(self, callback: Callable[[PlaneEvent], None]) -> None: ...
