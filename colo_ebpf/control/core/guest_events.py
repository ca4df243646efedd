# SPDX-License-Identifier: GPL-2.0-only
"""What the guest does with its own VM: it powers it off, reboots it, panics. Pure.

QEMU keeps a VM that was powered off, standing (`-action shutdown=pause`), and says SHUTDOWN. That
of the VM that serves is final: a checkpoint that was under way makes QEMU run it on past the
poweroff, which means nothing. A replica that powers off ahead of its primary is run again by the
next load.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo_ebpf.control.interfaces import Past
from colo_ebpf.model import VmEvent, VmEventKind

_ONE_REBOOT_NS = 2_000_000_000  # firmware resets once more by itself
_PANICS_NS = 10_000_000_000  # a guest may panic as often as it likes: one line in this time


@dataclass(slots=True)
class Guest:
    """Of one VM."""

    off_at_s: int | None = None  # seconds since 1970 when it powered itself off; 0: not known when
    panicked: bool = False
    resets: int = 0
    _off_ns: int = 0
    _reset_ns: int | None = None
    _panic_told_ns: int | None = None

    def found(self, past: Past, off: bool, now_ns: int) -> None:
        """By a daemon that adopts it. `off`: it stands, since it powered itself off."""
        self.panicked = past.panicked
        if off:
            self.off_at_s, self._off_ns = past.off_at_s or 0, now_ns

    def hear(self, event: VmEvent, *, loads: bool) -> str:
        """What to tell of an event ("" if nothing). `loads`: a RESUME now is the end of a load."""
        if event.kind is VmEventKind.SHUTDOWN:
            return self._shut_down(event)
        if event.kind is VmEventKind.RESET:
            return self._reset(event)
        if event.kind is VmEventKind.PANICKED:
            return self._panic(event)
        if event.kind is VmEventKind.RESUME and loads:
            self.off_at_s, self.panicked = None, False
        return ""

    def _shut_down(self, event: VmEvent) -> str:
        reason = event.data.get("reason", "no reason given")
        if not event.data.get("guest"):
            return f"QEMU was told to end, not by this daemon ({reason})"
        seconds = event.data.get("at_s")
        self.off_at_s = seconds if isinstance(seconds, int) else 0
        self._off_ns = event.at_ns
        return "the guest powered itself off"

    def _panic(self, event: VmEvent) -> str:
        self.panicked = True
        told_ns = self._panic_told_ns
        if told_ns is not None and event.at_ns - told_ns < _PANICS_NS:
            return ""
        self._panic_told_ns = event.at_ns
        return "the guest panicked; whether it reboots is its own setting"

    def _reset(self, event: VmEvent) -> str:
        """The kernel and the firmware may each ask for one: that is one reboot."""
        self.panicked = False
        last_ns, self._reset_ns = self._reset_ns, event.at_ns
        if last_ns is not None and event.at_ns - last_ns < _ONE_REBOOT_NS:
            return ""
        self.resets += 1
        if event.data.get("guest"):
            return "the guest reboots"
        return f"the guest was reset ({event.data.get('reason', 'no reason given')})"

    def ahead(self, now_ns: int, patience_ns: int) -> str:
        """Of a replica: why it wants to be loaded. Its primary has had time to do the same."""
        late = self.off_at_s is not None and now_ns - self._off_ns > patience_ns
        return "its guest powered itself off, the primary's did not" if late else ""
