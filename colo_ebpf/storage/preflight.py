# SPDX-License-Identifier: GPL-2.0-only
"""Looking at the peer's exports before a disk is copied to them.

A pairing that cannot work is refused here, in words, before a byte is copied: not by QEMU half
way through, and not by a guest whose flush fails.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colo_ebpf import addresses
from colo_ebpf.errors import StorageError

if TYPE_CHECKING:
    from colo_ebpf.storage.nbd import Connection

_FORMATS = ("raw", "qcow2")
_LEAST_REQUEST_BYTES = 64 << 10  # a server that takes less at once is none to copy a disk to


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """What QEMU says of the image here that is to be copied."""

    export: str  # the peer's export it goes to
    format: str
    size_bytes: int
    sector_bytes: int  # the least that the guest writes


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What a server says of one export."""

    where: str
    size_bytes: int
    read_only: bool
    can_flush: bool
    can_fua: bool
    can_zero: bool
    minimum_bytes: int  # of a request; 0: it does not say
    maximum_bytes: int


def objections(local: LocalDisk, remote: ExportFacts) -> list[str]:
    """Why the two cannot be a pair's images; each says what to do. Empty: they can."""
    where, found = remote.where, []
    if local.format not in _FORMATS:
        found.append(
            f"the image here is {local.format}: make it {' or '.join(_FORMATS)} (qemu-img convert)"
        )
    if local.size_bytes != remote.size_bytes:
        found.append(
            f"images differ in size: {local.size_bytes} bytes here, {remote.size_bytes} bytes in "
            f"{where}; make both the same before pairing"
        )
    if remote.read_only:
        found.append(f"{where}: is read-only; the image must be writable on the other host")
    for can, what, why in (
        (remote.can_flush, "flush", "what the guest was told is on disk would not be"),
        (remote.can_fua, "forced writes (FUA)", "every flush of the guest would flush it all"),
        (remote.can_zero, "writing zeroes", "empty parts would be copied as data"),
    ):
        if not can:
            found.append(
                f"{where}: does not offer {what}: {why}; run a QEMU of the same version there"
            )
    if remote.minimum_bytes > local.sector_bytes:
        found.append(
            f"{where}: takes no requests below {remote.minimum_bytes} bytes, the guest writes "
            f"sectors of {local.sector_bytes}; put the image on storage with "
            f"{local.sector_bytes}-byte sectors, or let the host cache it"
        )
    if 0 < remote.maximum_bytes < _LEAST_REQUEST_BYTES:
        found.append(
            f"{where}: takes requests of at most {remote.maximum_bytes} bytes; run a QEMU there"
        )
    return found


def digests_of(image: str) -> str:
    """The export of the digests of the image that is exported under this name."""
    return f"digests-{image}"


def is_digests(export: str) -> bool:
    """This is the name of such an export."""
    return export.startswith(digests_of(""))


def wrong_names(wanted: list[str], offered: list[str], where: str) -> list[str]:
    """The two hosts must be configured with as many disks, or the VMs' devices differ."""
    if sorted(wanted) == sorted(offered):
        return []
    return [
        f"{len(wanted)} disks here ({', '.join(wanted)}), {len(offered)} on {where} "
        f"({', '.join(offered) or 'none'}); give both hosts the same [[vm.disk]] tables"
    ]


def _facts(connection: Connection) -> ExportFacts:
    import nbd

    handle = connection.handle
    return ExportFacts(
        where=str(connection.address),
        size_bytes=connection.size_bytes,
        read_only=bool(handle.is_read_only()),
        can_flush=bool(handle.can_flush()),
        can_fua=bool(handle.can_fua()),
        can_zero=bool(handle.can_zero()),
        minimum_bytes=int(handle.get_block_size(nbd.SIZE_MINIMUM)),
        maximum_bytes=int(handle.get_block_size(nbd.SIZE_MAXIMUM)),
    )


def facts(name: str, host: str, port: int, timeout_ms: int) -> ExportFacts:
    """Ask a server about one export; StorageError if it cannot be asked in time."""
    from colo_ebpf.storage.nbd import Connection, ExportAddress

    with Connection(ExportAddress(name, host, port), timeout_ms) as connection:
        return _facts(connection)


def _look(disks: tuple[LocalDisk, ...], host: str, port: int, timeout_ms: int) -> list[str]:
    from colo_ebpf.storage.nbd import Connection, ExportAddress

    names = Connection(ExportAddress("", host, port), timeout_ms).list_names()
    offered = [name for name in names if not is_digests(name)]
    found = wrong_names([disk.export for disk in disks], offered, addresses.with_port(host, port))
    for disk in disks:
        if disk.export in offered:
            found += objections(disk, facts(disk.export, host, port, timeout_ms))
    return found


async def preflight(disks: tuple[LocalDisk, ...], host: str, port: int, timeout_ms: int) -> None:
    """Refuse, with every reason there is, what cannot be paired. Ends within a few timeouts.

    Raises StorageError with them.
    """
    found = await asyncio.to_thread(_look, disks, host, port, timeout_ms)
    if found:
        raise StorageError("; ".join(found))
