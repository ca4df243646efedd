# SPDX-License-Identifier: GPL-2.0-only
"""What the two hosts may not differ in, named before anything is copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import Disk, Nic
from colo_ebpf.control.decision import compatibility
from colo_ebpf.control.decision.actions import State, Task, TaskKind
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.snapshot import PeerFacts, Snapshot
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.control.qemu import error_log, own_compatibility
from colo_ebpf.model import Endpoints, Mode, VmHealth
from tests.unit.test_decide import ACTIVE, HEARD, NOW, PEER_A, PEER_B, A, B, _at

_PARSED = parse_config(EXAMPLE, Path("/etc/colo-ebpf/config.toml"))
_SIZES = [1 << 30]


def _of(version: str = "7.2", accel: str = "kvm", sizes: Any = _SIZES, **change: Any) -> Any:
    vm = msgspec.structs.replace(_PARSED.vm, **change)
    changed = msgspec.structs.replace(_PARSED, vm=vm)
    return own_compatibility.described(changed, accel, version, sizes)


def _nic(**change: Any) -> list[Nic]:
    return [msgspec.structs.replace(_PARSED.vm.nic[0], **change)]


def _disk(**change: Any) -> list[Disk]:
    return [msgspec.structs.replace(_PARSED.vm.disk[0], **change)]


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        (_of(memory_mib=192), "vm.memory-mib is 2048 on a and 192 on b"),
        (_of(version="10.0"), "QEMU is 7.2 on a and 10.0 on b"),
        (_of(accel="tcg"), "accelerator is kvm on a and tcg on b"),
        (_of(machine="q35"), "vm.machine is pc on a and q35 on b"),
        (_of(cpus=7), "and 7 on b"),
        (_of(nic=_nic(mtu=9000)), "MTU of NIC 0 is 1500 on a and 9000 on b"),
        (_of(nic=_nic(mac="52:54:00:00:00:99")), "and 52:54:00:00:00:99 on b"),
        (_of(nic=_nic() * 2), "number of NICs is 1 on a and 2 on b"),
        (_of(disk=_disk(format="qcow2")), "format of disk 0 is raw on a and qcow2 on b"),
        (_of(sizes=[1 << 31]), "bytes of disk 0 is 1073741824 on a and 2147483648 on b"),
        (_of(extra_args=["-device", "usb-tablet"]), "vm.extra-args is none on a and -device usb-"),
        (_of(append="quiet"), "vm.append"),
        (_of(rng=True, nic=_nic(slot=5)), "hardware is none on a and rng, slot 5 of NIC 0 on b"),
        (_of(clock="localtime"), "and clock localtime on b"),
        (_of(disk=_disk(boot_order=2)), "and boot-order 2 of disk 0 on b"),
    ],
)
def test_what_differs_is_named_with_both_values(theirs: dict[str, str], named: str) -> None:
    assert named in compatibility.difference(_of(), theirs, "a", "b")
    swapped = compatibility.difference(theirs, _of(), "b", "a")
    assert swapped, "both see it"


@pytest.mark.parametrize(
    "theirs",
    [
        _of(),
        {},
        _of(version=compatibility.UNKNOWN),
        _of(sizes=[None]),
        _of(nic=_nic(tap="other", bridge="other", mac=_PARSED.vm.nic[0].mac.upper())),
        _of(disk=_disk(path="/elsewhere/web.raw", overlay_dir="/dev/shm/x")),
        _of(kernel="/elsewhere/vmlinuz", qemu="/opt/qemu", name="web2"),
    ],
)
def test_what_may_differ_is_not_complained_about(theirs: dict[str, str]) -> None:
    assert compatibility.difference(_of(), theirs, "a", "b") == ""


def test_paths_in_extra_arguments_are_the_hosts_own() -> None:
    one = _of(extra_args=["-drive", "if=pflash,file=/a/vars.fd,format=raw"])
    other = _of(extra_args=["-drive", "if=pflash,file=/b/c/d.fd,format=raw"])
    third = _of(extra_args=["-drive", "if=pflash,file=/b/c/d.fd,format=qcow2"])
    assert compatibility.difference(one, other, "a", "b") == ""
    assert compatibility.difference(one, third, "a", "b")


def test_long_values_are_told_apart_and_fit_into_a_heartbeat() -> None:
    one, other = _of(append="x" * 900 + "1"), _of(append="x" * 900 + "2")
    assert compatibility.difference(one, other, "a", "b")
    nics, disks = _nic() * 8, _disk() * 8
    much = _of(nic=nics, disk=disks, sizes=[1 << 42] * 8, append="x" * 900, extra_args=["y" * 900])
    said = PeerState(vm="v" * 63, host="h" * 63, boot="b" * 16, compatibility=much,
                     gave_up="g" * 400, last_words="w" * 400)  # fmt: skip
    assert len(msgspec.msgpack.encode(said)) < 3500


# --- what is decided ----------------------------------------------------------------------


def _stands_by(**change: Any) -> Snapshot:
    peer = msgspec.structs.replace(PEER_B, state="standby", vni=0, instance="",
                                   health=VmHealth.NONE, generation=3, **change)  # fmt: skip
    s = _at("a", ACTIVE, mode=Mode.SOLO, peer=PeerFacts(peer, HEARD, HEARD))
    return replace(s, who=replace(s.who, compatibility=_of()))


def test_no_pair_is_offered_to_a_host_that_differs() -> None:
    assert decide(_stands_by(compatibility=_of())).task is not None
    d = decide(_stands_by(compatibility=_of(memory_mib=192)))
    assert d.task is None
    assert d.sentence == (
        "alone, unprotected: b cannot have a replica: vm.memory-mib is 2048 on a and 192 on b"
    )


def test_the_other_host_says_so_too() -> None:
    peer = msgspec.structs.replace(PEER_A, state="solo", vni=0, generation=3, compatibility=_of())
    s = _at("b", ACTIVE, vm=None, mode=Mode.WITHHOLD, peer=PeerFacts(peer, HEARD, HEARD))
    d = decide(replace(s, who=replace(s.who, compatibility=_of(memory_mib=192))))
    assert d.state is State.STANDBY
    assert "no replica can be made here: vm.memory-mib is 192 on b and 2048 on a" in d.sentence


def test_why_the_last_attempt_failed_is_said_while_it_rests() -> None:
    s = replace(_stands_by(), rest_until_ns=NOW + 1, rest_why="images differ in size")
    assert decide(s).sentence == (
        "alone, unprotected: resting after a pairing that failed: images differ in size"
    )


def test_the_last_words_of_the_replicas_qemu_are_the_reason() -> None:
    peer = msgspec.structs.replace(
        PEER_B, state="joining", vni=9, endpoints=Endpoints("192.0.2.9", 1, 2), generation=3,
        health=VmHealth.GONE, last_words="Size mismatch: pc.ram",
    )  # fmt: skip
    task = Task(TaskKind.PAIR, 9, B)
    d = decide(_at("a", ACTIVE, mode=Mode.SOLO, task=task, peer=PeerFacts(peer, HEARD, HEARD)))
    assert d.sentence == (
        "gave up pairing: the VM of b is gone; its last QEMU said: Size mismatch: pc.ram"
    )
    assert ACTIVE.owner == A


def test_only_what_this_qemu_wrote_counts_as_its_words(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    assert error_log.tail(log) == ""
    log.write_text("of another one\n")
    since = error_log.size(log)
    assert error_log.tail(log, since) == ""
    with log.open("a") as file:
        file.write("x" * 5_000 + "\nits last line\n")
    assert error_log.tail(log, since).endswith("its last line")
    assert len(error_log.tail(log, since)) <= 2_000
    log.write_text("cut meanwhile\n")
    assert error_log.tail(log, since) == "cut meanwhile"
