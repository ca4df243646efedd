# SPDX-License-Identifier: GPL-2.0-only
"""The taps of one VM, each with its queues. QEMU inherits them, and they stay open here as well.

A tap that nobody has open loses its carrier, and a bridge sends nothing to it: what clients send to
a VM that is gone would be lost before the data plane could give it to the replica (`relay`). A
daemon that adopts a VM does not have them.
"""

from __future__ import annotations

import os

from colo_ebpf.datapath.net import tuntap


class Taps:
    """One descriptor for each queue of each NIC, in order; none at first."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors."""
        return tuple(self._fds)

    def open(self, ifname: str, queues: int) -> None:
        """One more; AttachError if another process has it open. Blocks: use a thread."""
        self._fds += tuntap.open_queues(ifname, queues)

    def close(self) -> None:
        """Before the next VM opens them, or when this one is ended."""
        while self._fds:
            os.close(self._fds.pop())
