# SPDX-License-Identifier: GPL-2.0-only
"""What is told of harm that others do to the plane, and when it is looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from colo_ebpf.control import repair
from colo_ebpf.control.core.harm import Harm
from colo_ebpf.control.repair import Mender
from colo_ebpf.errors import AttachError
from colo_ebpf.model import Lack

GONE, DOWN = Lack("the tap is gone", hopeless=True), Lack("the link is down")


def test_what_is_put_back_is_told_and_forgotten() -> None:
    one = Harm()
    assert one.hear([DOWN], []) == ["the link is down: put back"]
    assert (one.said, one.hopeless) == ("", "")


def test_what_stays_is_told_once() -> None:
    one = Harm()
    assert one.hear([DOWN, GONE], [GONE]) == ["the link is down: put back", "the tap is gone"]
    assert one.hear([GONE], [GONE]) == []
    assert (one.said, one.hopeless) == ("the tap is gone", "the tap is gone")
    assert one.hear([], []) == []
    assert one.said == ""


class _Plane:
    """Looks end as the test says: lists of what is lacking, or an error."""

    def __init__(self, *looks: list[Lack] | AttachError) -> None:
        self.looks = list(looks)
        self.changed: Callable[[], None] = lambda: None

    def watch(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    async def mend(self) -> tuple[list[Lack], list[Lack]]:
        found = self.looks.pop(0)
        if isinstance(found, AttachError):
            raise found
        return found, [one for one in found if one.hopeless]


def test_it_looks_again_by_itself_while_something_is_lacking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair, "_AGAIN_S", 0.001)
    plane = _Plane([GONE], AttachError("br0: no"), [DOWN], [])
    told: list[tuple[Sequence[Lack], Sequence[Lack]]] = []

    async def run() -> None:
        enough = asyncio.Event()

        def hear(found: Sequence[Lack], left: Sequence[Lack]) -> None:
            told.append((found, left))
            if not left:
                enough.set()

        mender = Mender(plane, hear)  # type: ignore[arg-type]
        task = asyncio.create_task(mender.run())
        await asyncio.sleep(0)
        plane.changed()
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()

    asyncio.run(run())
    error = Lack("the data plane's devices: br0: no")
    assert told == [([GONE], [GONE]), ([error], [error]), ([DOWN], [])]
    assert plane.looks == [[]], "nothing is lacking: nobody looks any more"
