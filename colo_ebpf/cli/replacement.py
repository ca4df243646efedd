# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf arbiter replace`: an operator decides whose image counts, when no daemon can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colo_ebpf.cli import vms
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.errors import ArbiterError, ControlError, NoDaemonError

if TYPE_CHECKING:
    from colo_ebpf.control.interfaces import Arbiter

_SERVES = ("primary", "solo")


async def examined(config: Config, arbiter: Arbiter, generation: int) -> Record:
    """The record that is to be replaced. ArbiterError if it is another one by now, ControlError if
    the VM serves on this host, StorageError if the images here are half a copy."""
    _require_silent(config)
    InconsistentImages(Path(config.host.state_dir)).check()
    old = await arbiter.read()
    if old.generation != generation:
        raise ArbiterError(
            f"the record is of generation {old.generation}, not {generation}: {old.describe()}; "
            "look again, then decide again"
        )
    return old


def _require_silent(config: Config) -> None:
    try:
        status = control_socket.ask(vms.socket_of(config), "status")
    except NoDaemonError:
        return
    if status["role"] in _SERVES:
        raise ControlError(
            f"{config.vm.name} serves on this host ({status['role']}): its record is not replaced"
        )


def question(config: Config, old: Record) -> str:
    """What the operator agrees to."""
    here, peer = config.host.name, config.peer.name
    lost = "" if old.image == here else f" What {here} lacks of it is lost."
    runs = old.kind not in (Kind.COLD, Kind.OFF) and host_of(old.owner) == peer
    alive = f" Is the VM on {peer} certainly ended? Else two of them will serve." if runs else ""
    return (
        f"Generation {old.generation} says: {old.describe()}. Replace it, and start "
        f"{config.vm.name} from the image of {here}?{lost}{alive}"
    )


async def write(config: Config, arbiter: Arbiter, old: Record) -> Record:
    """Returns the newest record. ArbiterError if another one was written meanwhile."""
    mine = record.choose_image(old, config.host.name)
    newest = await arbiter.swap(old, mine)
    if not newest.is_same(mine):
        raise ArbiterError(
            f"generation {newest.generation} was written meanwhile: {newest.describe()}; look "
            "again, then decide again"
        )
    return newest
