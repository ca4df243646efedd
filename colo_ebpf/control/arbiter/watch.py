# SPDX-License-Identifier: GPL-2.0-only
"""Whether the arbiter could be asked, were it needed now.

A pair at rest never asks it. So it may be gone for days before the night on which a host dies, and
then nobody can take over. It is looked at every few seconds: as long as it fails the pair is not
protected, on both hosts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from colo_ebpf.control.interfaces import Arbiter
from colo_ebpf.errors import ArbiterError

_EVERY_S = 5.0


async def watch(arbiter: Arbiter, tell: Callable[[str], None]) -> None:
    """For as long as the daemon runs: why it fails, "" while it does not."""
    while True:
        try:
            await arbiter.check()
            tell("")
        except ArbiterError as e:
            tell(str(e))
        await asyncio.sleep(_EVERY_S)
