# SPDX-License-Identifier: GPL-2.0-only
"""What the thread that carries a disk tells the daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.qemu import carrier
from colo_ebpf.model import Progress


@pytest.mark.parametrize(("at_least_s", "told"), [(3600.0, [0, 1000]), (0.0, [*range(1001)])])
async def test_the_daemon_is_not_told_of_each_piece(
    monkeypatch: pytest.MonkeyPatch, at_least_s: float, told: list[int]
) -> None:
    """The pieces of a hole come faster than an event loop takes them. The last is always told."""
    monkeypatch.setattr(carrier, "_TELL_S", at_least_s)
    spec = settings.vm_spec(parse_config(EXAMPLE, Path("example")), "kvm")
    seen: list[Progress] = []
    tell = carrier.Carrier(spec, "a/1", cast(Any, None))._teller("disk", seen.append)

    def carry() -> None:
        for done in range(1001):
            tell(done, 1000)

    await asyncio.to_thread(carry)
    await asyncio.sleep(0)
    assert [one.done for one in seen] == told
