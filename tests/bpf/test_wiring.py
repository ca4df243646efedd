# SPDX-License-Identifier: GPL-2.0-only
"""What others do to the devices of a VM: nothing leaves uncompared, and all of it is put back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from colo_ebpf.datapath.bpf import syscalls
from colo_ebpf.datapath.net import bridges, netdev, tcx
from colo_ebpf.datapath.net.hooks import By, Hook
from colo_ebpf.datapath.wiring import Wiring
from colo_ebpf.errors import AttachError
from colo_ebpf.model import VmRole
from tests.bpf.attached import attached, numbers
from tests.bpf.frames import payload, segment
from tests.bpf.rig import Rig, established
from tests.capabilities import require

_SLOTS = 512  # a rig of its own: what is done to its devices is no other test's
_TAP = {
    "ingress": ["colo_cmp_pvm", "colo_last_out"],
    "egress": ["colo_last_in", "colo_mir_cli"],
}


@pytest.fixture(params=list(By))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With an established connection; both ways to hold the programs."""
    require("root", "bpf")
    with established(slots=_SLOTS) as rig:
        _wire(rig, request.param)
        yield rig
    rig.close()


@pytest.fixture
def held_by_links() -> Iterator[Rig]:
    """As this kernel has it by default."""
    require("root", "bpf")
    with established(slots=_SLOTS) as rig:
        assert rig.plane.wiring.by is By.TCX
        yield rig
    rig.close()


def _wire(rig: Rig, by: By) -> None:
    plane = rig.plane
    on_bridge = plane.wiring.on_bridge
    plane.wiring.close()
    plane.wiring = Wiring(replace(plane._spec, by=by), rig._pins, plane.programs)
    plane.wiring.on_bridge = on_bridge
    asyncio.run(plane.take_role(VmRole.PRIMARY))


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=20)


def _mend(rig: Rig) -> list[str]:
    """What was put back; nothing is left to do."""
    found, left = asyncio.run(rig.plane.mend())
    assert left == []
    return [one.what for one in found]


def test_no_frame_leaves_uncompared_when_clsact_is_removed(held_by_links: Rig) -> None:
    """As found: all of it left, and the survivor contradicted it."""
    rig = held_by_links
    _run("tc qdisc add dev tap0 clsact")
    _run("tc qdisc del dev tap0 clsact")
    rig.from_vm(segment(1001, b"hello", ack=5001))
    assert rig.to_client() == []
    rig.from_peer(segment(1001, b"hello", ack=5001), 1)
    assert payload(rig.to_client()) == b"hello"


def test_what_is_removed_is_found_and_put_back(rig: Rig) -> None:
    assert (attached("tap0"), _mend(rig)) == (_TAP, [])
    if rig.plane.wiring.by is By.CLSACT:
        _run("tc qdisc del dev tap0 clsact")
        gone = [name for names in _TAP.values() for name in names]
    else:
        _run("bpftool link detach pinned " + str(rig._pins / tcx.DIRECTORY / "nic0_out"))
        assert not rig.plane.unharmed()
        gone = ["colo_cmp_pvm"]
    said = _mend(rig)
    assert sorted(line.split()[2] for line in said) == sorted(gone)
    assert "tap0 ingress: colo_cmp_pvm was taken off" in said
    assert (attached("tap0"), rig.plane.unharmed(), _mend(rig)) == (_TAP, True, [])


_HARM = {
    "link": ("ip link del vx0", "the link device vx0 was removed"),
    "link-down": ("ip link set vx0 down", "the link device vx0 is down"),
    "line": ("ip link del vx0-in", "the delay line vx0-in was removed"),
    "queue": ("tc qdisc del dev vx0-in root", "the queue of the delay line vx0-in was removed"),
    "port": ("ip link set tap0 nomaster", "the tap tap0 is not on the bridge br0"),
    "tap-down": ("ip link set tap0 down", "the tap tap0 is down"),
}


@pytest.mark.parametrize("harm", _HARM)
def test_devices_and_ports_are_put_back(rig: Rig, harm: str) -> None:
    command, sentence = _HARM[harm]
    _run(command)
    assert sentence in _mend(rig)
    assert _mend(rig) == []
    assert rig.plane._conf.link_ifindex == netdev.index_of("vx0")
    assert rig.plane._conf.park_ifindex == netdev.index_of("vx0-in")
    assert attached("vx0") == {"ingress": ["colo_cmp_svm"]}
    rig.from_vm(segment(1001, b"hello", ack=5001))
    rig.from_peer(segment(1001, b"hello", ack=5001), 1)
    assert payload(rig.to_client()) == b"hello"


def test_a_tap_cannot_be_made_again_under_its_vm(rig: Rig) -> None:
    _run("ip link del tap1")
    found, left = asyncio.run(rig.plane.mend())
    assert [(one.what, one.hopeless) for one in left] == [
        ("the tap tap1 was removed: its VM has lost that network card for good", True)
    ]
    assert found == left


def test_without_the_bridge_it_is_said_until_it_is_there(rig: Rig) -> None:
    _run("ip link del br1")
    for _ in range(2):
        _, left = asyncio.run(rig.plane.mend())
        assert [one.what for one in left] == [
            "there is no bridge br1: the VM's clients are behind it"
        ]
    bridges.create("br1")
    assert _mend(rig) == ["the tap tap1 is not on the bridge br1"]
    assert netdev.master_of("tap1") == netdev.index_of("br1")


def test_pins_are_made_again(rig: Rig) -> None:
    before = {path.relative_to(rig._pins) for path in rig._pins.rglob("*") if path.is_file()}
    running = numbers("tap0", Hook.INGRESS)
    shutil.rmtree(rig._pins)
    assert not rig.plane.unharmed()
    assert numbers("tap0", Hook.INGRESS) == running
    said = _mend(rig)
    assert f"the pin {rig._pins / 'colo_flows'} was removed" in said
    after = {path.relative_to(rig._pins) for path in rig._pins.rglob("*") if path.is_file()}
    assert (after, rig.plane.unharmed()) == (before, True)


def test_the_kernel_tells_of_changes_to_our_devices_only(rig: Rig) -> None:
    async def told(*commands: str) -> bool:
        changed = asyncio.Event()
        rig.plane.watch(changed.set)
        try:
            for command in commands:
                _run(command)
            async with asyncio.timeout(1.0):
                await changed.wait()
        except TimeoutError:
            return False
        finally:
            assert rig.plane._changes is not None
            for fd in rig.plane._changes.fds:
                asyncio.get_running_loop().remove_reader(fd)
            rig.plane._changes.close()
            rig.plane._changes = None
        return True

    for _ in range(10):  # a device that was just made gets its state a little later
        if not asyncio.run(told()):
            break
    strangers = ("ip link add x0 type veth peer name x1", "ip link set x0 up", "ip link del x0")
    assert not asyncio.run(told(*strangers))
    for harm in ("ip link set tap0 nomaster", "ip link del vx0", "tc qdisc del dev vx0-in root"):
        assert asyncio.run(told(harm))
        _mend(rig)
    if rig.plane.wiring.by is By.CLSACT:
        assert asyncio.run(told("tc qdisc del dev tap0 clsact"))
        _mend(rig)


def test_one_way_takes_the_place_of_the_other(rig: Rig) -> None:
    """An older daemon's filters must not stay beside the links, nor the other way round."""
    for by in (By.CLSACT, By.TCX, By.CLSACT):
        _wire(rig, by)
        assert attached("tap0") == _TAP
        assert (rig._pins / tcx.DIRECTORY).is_dir() is (by is By.TCX)


def test_a_program_before_ours_is_told(held_by_links: Rig) -> None:
    rig = held_by_links
    other = rig.plane.programs["colo_age"]
    link = syscalls.link_create(other, netdev.index_of("tap0"), tcx.TYPE[Hook.INGRESS], 1 << 3)
    _, left = asyncio.run(rig.plane.mend())
    number = syscalls.program_info(other).number
    (said,) = [one.what for one in left]
    assert said.startswith(f"tap0 ingress: the BPF program {number} of somebody else runs before")
    os.close(link)
    assert _mend(rig) == []


def test_a_kernel_without_links_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcx, "available", lambda: False)
    require("root", "bpf")
    with Rig(slots=_SLOTS) as rig:
        spec = rig.plane._spec
        assert Wiring(spec, rig._pins, rig.plane.programs).by is By.CLSACT
        with pytest.raises(AttachError, match=r"no TCX hooks .* set it to \"auto\""):
            Wiring(replace(spec, by=By.TCX), rig._pins, rig.plane.programs)
    rig.close()
