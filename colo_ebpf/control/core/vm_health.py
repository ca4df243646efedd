# SPDX-License-Identifier: GPL-2.0-only
"""May the VM here be made the only one, as far as its disks and its process go? Pure.

A replica is loaded anew by each checkpoint, its overlays are emptied, and with them whatever went
wrong since the last one: a failed request, an overlay that is full. So it is unfit until the next
load, and wants one. If it fails again after each of several loads, what fails is not the overlay:
then it is unfit for good, and the primary leaves the pair.

The VM that serves has no such way out: what failed there failed for good.

A QEMU that dies closes its monitor before its process is gone. Between the two this host does not
count on the VM, and does not complain of it either: to the other host a VM that is unfit is one
that has to be taken over from, with the fence, and one that is gone hands over by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colo_ebpf.model import OverlayUse

RELAPSES = 3
ROOM_BYTES = 256 << 10  # a few clusters: below, the next write of either VM may find no room
_LEAST_MARK_BYTES = 1 << 20  # an empty overlay takes a quarter of it
_SILENT = "its QEMU does not answer"


@dataclass(slots=True)
class Fitness:
    """Of one VM. Loads are counted as `SecondaryCheckpoints.loads` does: those begun, too."""

    lasting: str = ""
    hung: str = ""  # QEMU does not answer: until it does
    passing: str = ""  # while it is a replica, until a load
    lost_ns: int | None = None  # its monitor closed then: perhaps its process ends
    filling: str = ""  # nothing failed yet, but a checkpoint should come before it does
    _failed_at: int = -RELAPSES  # loads when it failed
    _row: int = 0

    def failed(self, why: str, loads: int | None) -> None:
        """A request failed. `loads`: of a replica; None: of the VM that serves."""
        if loads is None:
            self.lasting = self.lasting or why
            return
        if loads > self._failed_at:
            self._row = self._row + 1 if loads == self._failed_at + 1 else 1
        self._failed_at, self.passing = max(loads, self._failed_at), why
        if self._row >= RELAPSES:
            self.lasting = f"{why}, again after each of {RELAPSES - 1} checkpoints"

    def loaded(self, loads: int) -> None:
        """So many loads were seen done: of one begun after the failure, all is new."""
        if loads > self._failed_at:
            self.passing = ""

    def outlives_monitor(self, now_ns: int, patience_ns: int) -> None:
        """Once its process has not ended within `patience_ns` of its monitor."""
        if self.lost_ns is not None and now_ns - self.lost_ns > patience_ns:
            self.lasting, self.lost_ns = self.lasting or _SILENT, None

    def serves(self) -> None:
        """It is no replica: what a load would have healed was healed before it took over."""
        self.passing = self.filling = ""

    def overlays(self, uses: Sequence[OverlayUse], loads: int) -> None:
        """How full a replica's overlays are."""
        self.filling = ""
        for use in uses:
            if use.free_bytes < ROOM_BYTES:
                self.failed(f"the overlays of disk {use.disk} have no room left", loads)
            elif use.used_bytes >= max(use.limit_bytes // 2, _LEAST_MARK_BYTES):
                self.filling = (
                    f"the overlays of disk {use.disk} fill: {use.used_bytes >> 20} of "
                    f"{use.limit_bytes >> 20} MiB"
                )

    def unfit(self, replica: bool) -> str:
        """Why it may not be made the only one; "": it may."""
        return self.complaint(replica) or (_SILENT if self.lost_ns is not None else "")

    def complaint(self, replica: bool) -> str:
        """The same as the other host is told."""
        return self.lasting or self.hung or (self.passing if replica else "")

    @property
    def want(self) -> str:
        """Why a replica wants a checkpoint. One that cannot load it wants nothing."""
        return "" if self.unfit(replica=False) else self.passing or self.filling
