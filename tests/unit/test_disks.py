# SPDX-License-Identifier: GPL-2.0-only
"""What is read from QEMU's list of block nodes, and how several disks are told apart."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.interfaces import is_peer_node
from colo_ebpf.control.qemu import cmdline
from colo_ebpf.control.qemu.block import Disks, in_use
from colo_ebpf.control.qemu.digesting import has_digests
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.errors import VmError
from colo_ebpf.model import VmRole
from tests.capabilities import require

# As QEMU 7.2 lists them while it merges a survivor's overlays, and when it has done so.
_OVERLAYS = ["/o/active0.qcow2", "/o/hidden0.qcow2"]
_MERGED = [
    {"node-name": "quorum0", "drv": "quorum", "file": 'json:{"driver": "quorum"}'},
    {"node-name": "childs0", "drv": "replication", "file": 'json:{"driver": "replication"}'},
    {"node-name": "#block134", "drv": "raw", "file": "/i/disk.raw"},
    {"node-name": "#block013", "drv": "file", "file": "/i/disk.raw"},
]
_MERGING = [
    {"node-name": "#block878", "drv": "mirror_top", "file": 'json:{"driver": "qcow2"}'},
    {"node-name": "#block338", "drv": "qcow2", "file": 'json:{"driver": "qcow2"}'},
    {"node-name": "#block226", "drv": "file", "file": "/o/active0.qcow2"},
    *_MERGED,
]


@pytest.mark.parametrize(("nodes", "open_"), [(_MERGING, True), (_MERGED, False)])
def test_overlays_count_until_qemu_has_closed_them(
    nodes: list[dict[str, object]], open_: bool
) -> None:
    assert in_use(_OVERLAYS, nodes) is open_


class _Monitors:
    """Of a QEMU that is this process: it closes a connection a few turns of its loop later."""

    def __init__(self, taken: socket.socket, turns: int) -> None:
        self._taken, self._turns = taken, turns
        self.said: list[str] = []

    async def run(self, command: str, **_: object) -> object:
        await asyncio.sleep(0)
        self.said.append(command)
        if len(self.said) == self._turns:
            self._taken.close()
        return {}

    ensure = run


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """Taken from a port where this process listens."""
    require("root")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as taken,
    ):
        yield taken


def _disks(connection: socket.socket, qmp: _Monitors, **spec: int) -> Disks:
    """Of a QEMU that has taken it at its disk's port."""
    of_port = dataclasses.replace(_spec(), nbd_port=connection.getsockname()[1], **spec)
    return Disks(of_port, "b/1", os.getpid(), cast(Monitors, qmp), Starter())


async def test_the_disks_port_is_closed_once_qemu_has_hung_up_on_all(
    connection: socket.socket,
) -> None:
    """As found: told to stop before it had seen the end of a connection, it waited for ever."""
    qmp = _Monitors(connection, 3)
    await _disks(connection, qmp).close_server()
    assert qmp.said == ["query-status"] * 3 + ["nbd-server-stop"]


async def test_a_port_that_qemu_does_not_close_is_left_and_said(connection: socket.socket) -> None:
    qmp = _Monitors(connection, 0)
    with pytest.raises(VmError, match="does not close its disk's port"):
        await _disks(connection, qmp, qmp_timeout_ms=50).close_server()
    assert "nbd-server-stop" not in qmp.said


_SECOND_DISK = """[[vm.disk]]
path = "/var/lib/colo-ebpf/data.qcow2"
overlay-dir = "/dev/shm/colo-ebpf/web"
format = "qcow2"
sector-bytes = 4096

[host]"""


def _spec() -> cmdline.VmSpec:
    text = EXAMPLE.replace("[host]", _SECOND_DISK)
    return settings.vm_spec(parse_config(text, Path("example")), "kvm")


def test_each_disk_has_its_own_parts() -> None:
    one, two = _spec().disks
    assert (one.path.name, two.path.name) == ("web.raw", "data.qcow2")
    names = [
        (d.device, d.quorum, d.image, d.replica, d.peer_node, *map(str, d.overlays))
        for d in (one, two)
    ]
    assert not set(names[0]) & set(names[1])
    assert {d.overlay_dir for d in (one, two)} == {Path("/dev/shm/colo-ebpf/web")}
    assert one.digests != two.digests


def test_digests_are_made_only_if_all_copied_disks_are_raw() -> None:
    """Those of one disk alone would save nothing: the copies of all disks end together."""
    spec = _spec()
    raw, qcow2 = spec.disks
    shared = dataclasses.replace(qcow2, shared=True)
    for disks, has in (((raw,), True), ((raw, qcow2), False), ((raw, shared), True)):
        assert has_digests(dataclasses.replace(spec, disks=disks)) is has
    assert not has_digests(dataclasses.replace(spec, disks=(shared,)))


@pytest.mark.parametrize("role", VmRole)
def test_each_disk_is_on_the_command_line_in_order(role: VmRole) -> None:
    protocols = ("file", "host_device")
    line = cmdline.command_line(_spec(), role, "a/0123456789abcdef", protocols)
    devices = [word for word in line if word.startswith("virtio-blk-pci")]
    assert devices == [
        f"virtio-blk-pci,id=disk{n},drive=colo-disk{n},"
        f"logical_block_size={sector},physical_block_size={sector}"
        for n, sector in ((0, 512), (1, 4096))
    ]
    drives = [line[i + 1] for i, word in enumerate(line) if word == "-drive"]
    for n, form in ((0, "raw"), (1, "qcow2")):
        own = [drive for drive in drives if f"id=parent{n}," in drive]
        assert len(own) == 1
        assert f"driver={form},file.driver={protocols[n]}," in own[0]
        child = f"childs{n}" if role is VmRole.SECONDARY else f"parent{n}"
        assert any(drive.endswith(f"file.children.0={child}") for drive in drives)
    replicas = [drive for drive in drives if "driver=replication" in drive]
    wanted = [(f"top-id=colo-disk{n}", f"active{n}.qcow2", f"hidden{n}.qcow2") for n in (0, 1)]
    wanted = wanted if role is VmRole.SECONDARY else []
    assert [all(w in r for w in words) for r, words in zip(replicas, wanted, strict=True)] == [
        True for _ in wanted
    ]


@pytest.mark.parametrize(
    ("name", "is_peers"),
    [("nbd0", True), ("nbd7", True), ("nbd", False), ("parent0", False), ("#block114", False)],
)
def test_which_nodes_are_the_peers(name: str, is_peers: bool) -> None:
    assert is_peer_node(name) is is_peers
