# SPDX-License-Identifier: GPL-2.0-only
"""The images of a protected pair, opened for reading while somebody compares them.

The daemon of the primary has QEMU export its images read-only on a unix socket, and says where
their replicas are. Reading and comparing is the asker's: the daemon only opens, and closes when
told to or when the asker's connection ends, however it ends. One asker at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.interfaces import Vm
from colo_ebpf.errors import ColoError, ControlError

if TYPE_CHECKING:
    from colo_ebpf.control.core.core import Core

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loan:
    asker: object
    vm: Vm
    generation: int


class ImageExport:
    """At most one loan. `core` gives what this daemon knows now."""

    def __init__(self, core: Callable[[], Core]) -> None:
        self._core = core
        self._loan: _Loan | None = None
        self._lock = asyncio.Lock()  # opening and closing are several commands each

    async def lend(self, asker: object) -> dict[str, Any]:
        """Open; where the images are. ControlError where there is no pair to compare."""
        async with self._lock:
            vm, generation = self._protected()
            if self._loan is not None:
                raise ControlError("the images are being compared already: wait for that to end")
            self._loan = _Loan(asker, vm, generation)
            try:
                lent = await vm.lend_images()
            except BaseException:
                self._loan = None
                raise
            return {"images": [asdict(one) for one in lent], "generation": generation}

    def _protected(self) -> tuple[Vm, int]:
        core = self._core()
        vm, record = core.vm, core.record
        if core.decision.state is not State.PRIMARY or vm is None or record is None:
            raise ControlError(
                f"no images can be compared here ({core.decision.state.value}: "
                f"{core.decision.sentence}): ask the primary of a protected pair"
            )
        return vm, record.generation

    async def take_back(self, asker: object) -> dict[str, Any]:
        """Close. Whether the pair lasted all the while: else the comparison says nothing.

        Raises ControlError if nothing was lent.
        """
        loan = self._loan
        if loan is None or loan.asker is not asker:
            raise ControlError("nothing was lent on this connection")
        record, state = self._core().record, self._core().decision.state
        lasted = record is not None and record.generation == loan.generation
        await self.leave(asker)
        return {"lasted": lasted and state is State.PRIMARY}

    async def leave(self, asker: object) -> None:
        """The asker is gone, or done."""
        async with self._lock:
            loan = self._loan
            if loan is None or loan.asker is not asker:
                return
            self._loan = None
            try:
                await loan.vm.take_back_images()
            except ColoError as e:
                _log.info("the images that were compared: %s", e)
