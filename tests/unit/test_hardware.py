# SPDX-License-Identifier: GPL-2.0-only
"""Disks on virtio-scsi, disks that are only read, NICs with several queues and with vhost."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colo_ebpf.cli import images, paths
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings
from colo_ebpf.control.decision import compatibility
from colo_ebpf.control.qemu import cmdline, own_compatibility, scope, vhost
from colo_ebpf.control.qemu.cmdline import NicSpec, VmSpec
from colo_ebpf.control.qemu.vm import data_generation_of
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import ConfigError, StorageError, VmError
from colo_ebpf.model import VmRole
from colo_ebpf.storage import image

FILE = Path("/etc/colo-ebpf/vms/web.toml")
SEED = '\n[[vm.disk]]\npath = "/seed.iso"\nreadonly = true\n\n[host]'
NIC = """[[vm.nic]]
mac = "52:54:00:12:34:57"
tap = "tapweb1"
bridge = "br0"
queues = 2
vhost = true

[[vm.disk]]"""


def _with(disk: str = "", nic: str = "", more: str = "") -> Config:
    """`disk`, `nic`: keys of the first ones; `more`: another disk."""
    text = EXAMPLE.replace('format = "raw"', f'format = "raw"\n{disk}')
    text = text.replace("mtu = 1500", f"mtu = 1500\n{nic}")
    return parse_config(text.replace("[host]", more) if more else text, FILE)


def _spec(config: Config) -> VmSpec:
    return settings.vm_spec(config, "tcg")


def _line(spec: VmSpec, role: VmRole = VmRole.PRIMARY) -> list[str]:
    return cmdline.command_line(spec, role, "a/1", ("file",) * len(spec.disks))


def _devices(spec: VmSpec) -> list[str]:
    line = _line(spec)
    return [line[n + 1] for n, word in enumerate(line) if word == "-device"]


# --- the configuration ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"disk": 'bus = "nvme"'}, r"vm\.disk.*bus: Expected `str` matching.*virtio-scsi"),
        ({"disk": 'bus = "virtio-scsi"\nslot = 4'}, "slot does not go with bus = .*one controller"),
        ({"disk": "readonly = true"}, "overlay-dir and overlay-limit-mib do not go with readonly"),
        ({"disk": 'readonly = "yes"'}, r"vm\.disk.*readonly: Expected `bool`"),
        (
            {"more": SEED.replace("[host]", 'format = "qcow2"\n[host]')},
            "readonly needs a raw image",
        ),
        (
            {"more": SEED.replace("[host]", 'bus = "virtio-scsi"\nsector-bytes = 4096\n[host]')},
            r"/seed\.iso: sector-bytes does not go with a CD-ROM",
        ),
        (
            {"more": SEED.replace("readonly = true", "readonly = false")},
            r"vm\.disk: /seed\.iso: overlay-dir is missing: its replica writes there",
        ),
        ({"nic": "queues = 0"}, r"vm\.nic.*queues: .*>= 1"),
        ({"nic": "queues = 9"}, r"vm\.nic.*queues: .*<= 8"),
        ({"nic": 'vhost = "on"'}, r"vm\.nic.*vhost: Expected `bool`"),
        ({"nic": "queue = 2"}, r"unknown key 'queue' in \[vm.nic\]; did you mean 'queues'"),
    ],
)
def test_keys_that_do_not_fit_are_one_sentence(keys: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        _with(**keys)
    assert "\n" not in str(raised.value)


def test_a_vm_has_a_disk_that_it_writes_to() -> None:
    text = EXAMPLE
    for key in ("overlay-dir", "overlay-limit-mib"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith(key))
    text = text.replace('format = "raw"', "readonly = true")
    with pytest.raises(ConfigError, match="all are readonly: a VM has a disk that it writes to"):
        parse_config(text, FILE)


# --- disks ----------------------------------------------------------------------------------


def test_disks_on_virtio_scsi_share_a_controller_behind_what_has_a_slot() -> None:
    more = SEED.replace("readonly = true", 'overlay-dir = "/o"\nslot = 9\nserial = "s"')
    devices = _devices(_spec(_with(disk='bus = "virtio-scsi"\nserial = "system"', more=more)))
    disks = [one for one in devices if "disk" in one or "scsi" in one]
    sectors = "logical_block_size=512,physical_block_size=512"
    assert disks == [
        f"virtio-blk-pci,id=disk1,drive=colo-disk1,{sectors},serial=s,addr=0x9",
        "virtio-scsi-pci,id=scsi0",
        f"scsi-hd,id=disk0,drive=colo-disk0,bus=scsi0.0,scsi-id=0,{sectors},serial=system",
    ]


def test_without_a_scsi_disk_there_is_no_controller() -> None:
    assert "scsi" not in " ".join(_line(_spec(_with(more=SEED))))


@pytest.mark.parametrize("role", VmRole)
def test_a_readonly_disk_is_its_image_and_no_more(role: VmRole) -> None:
    spec = _spec(_with(more=SEED))
    line = _line(spec, role)
    drives = [line[n + 1] for n, word in enumerate(line) if word == "-drive"]
    assert [drive for drive in drives if "seed.iso" in drive] == [
        "if=none,id=colo-disk1,driver=raw,file.driver=file,file.filename=/seed.iso,readonly=on,"
        "rerror=report"
    ]
    assert not [drive for drive in drives if "parent1" in drive or "active1" in drive]
    assert [disk.number for disk in spec.replicated] == [0]
    assert "virtio-blk-pci,id=disk1,drive=colo-disk1," in " ".join(_devices(spec))


def test_a_readonly_disk_on_virtio_scsi_is_a_cd_rom() -> None:
    more = SEED.replace("[host]", 'bus = "virtio-scsi"\n[host]')
    wanted = "scsi-cd,id=disk1,drive=colo-disk1,bus=scsi0.0,scsi-id=1"
    assert wanted in _devices(_spec(_with(more=more)))


def test_what_is_only_read_is_no_part_of_a_replica(tmp_path: Path) -> None:
    config = _with(more=SEED)
    spec = replace(_spec(config), run_dir=tmp_path)
    assert [path.name for path in data_generation_of(spec)._images] == ["web.raw"]
    found = paths.paths(config, FILE)
    assert found["disk 1"] == "/seed.iso"
    assert "overlays of disk 0" in found and "overlays of disk 1" not in found
    assert [name for name, _ in images.checks(config)][:3] == ["disk 0", "overlays 0", "disk 1"]


def test_qemu_may_read_a_device_that_it_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(_spec(_with(more=SEED)), accel="tcg")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((0o60600, *[0] * 9)))
    assert [way for _, way in scope.devices(spec)] == ["rw", "r"]


def test_an_image_that_is_only_read_need_not_be_writable(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(b"CD001" * 4096)
    opened: list[int] = []
    real = os.open

    def look(name: object, flags: int, *rest: int) -> int:
        if name == path:
            opened.append(flags & os.O_ACCMODE)
        return real(name, flags, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", look)
        facts = image.inspect(path, "raw", 512, readonly=True)
        assert (facts.virtual_bytes, facts.protocol) == (20480, "file")
        assert image.look(path, "raw", 512, readonly=True) == facts
        assert set(opened) == {os.O_RDONLY}
        image.look(path, "raw", 512)
        assert opened[-1] == os.O_RDWR


MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 5 * MIB // 2, 16 * MIB, 40 * MIB])
@pytest.mark.parametrize("at", [0, -1])
def test_a_digest_tells_of_the_first_and_the_last_byte(tmp_path: Path, size: int, at: int) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"")
    os.truncate(path, size)
    before = image.digest(path, size)
    assert before == image.digest(path, size)
    assert before != image.digest(path, size + 512)
    if size:
        with path.open("r+b") as file:
            file.seek(at % size)
            file.write(b"x")
        assert image.digest(path, size) != before


def test_of_a_small_image_each_byte_counts(tmp_path: Path) -> None:
    path = tmp_path / "one"
    size = 5 * MIB // 2
    found = set()
    for at in range(0, size, MIB // 4):
        content = bytearray(size)
        content[at] = 1
        path.write_bytes(content)
        found.add(image.digest(path, size))
    assert len(found) == 10
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        image.digest(tmp_path / "none", 1)


# --- NICs -----------------------------------------------------------------------------------


def test_a_nic_with_queues_has_a_descriptor_for_each() -> None:
    text = EXAMPLE.replace("mtu = 1500", "mtu = 1500\nqueues = 4").replace("[[vm.disk]]", NIC)
    line = _line(_spec(parse_config(text, FILE)))
    netdevs = [line[n + 1] for n, word in enumerate(line) if word == "-netdev"]
    assert netdevs == [
        "tap,id=net0,fds=13:14:15:16,vhost=off",
        "tap,id=net1,fds=17:18,vhost=on,vhostfds=19:20",
    ]
    nics = [word for word in line if word.startswith("virtio-net-pci")]
    assert ",mq=on,vectors=10" in nics[0] and ",mq=on,vectors=6" in nics[1]


def test_a_nic_with_one_queue_is_as_it_was() -> None:
    line = " ".join(_line(_spec(_with(nic="vhost = true"))))
    assert "tap,id=net0,fd=13,vhost=on,vhostfd=14" in line
    assert "mq=" not in line and "vectors" not in line


def test_the_data_plane_makes_its_taps_with_these_queues() -> None:
    plane = settings.plane_spec(_with(nic="queues = 4"), security=Security.NONE)
    assert [nic.queues for nic in plane.nics] == [4]


def test_vhost_is_opened_for_each_queue_and_closed_here(tmp_path: Path) -> None:
    device = tmp_path / "vhost-net"
    device.write_bytes(b"")
    nics = [
        NicSpec("t0", "m", queues=3),
        NicSpec("t1", "m", queues=2, vhost=True),
        NicSpec("t2", "m", vhost=True),
    ]
    with vhost.opened(nics, device) as fds:
        assert len(set(fds)) == 3
        assert all(os.get_inheritable(fd) is False for fd in fds)
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
    assert vhost.require(device) == f"{device}: can be opened"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda path: None,
            r"vm\.nic\.vhost: this kernel has no vhost-net \(.*No such file or directory\): "
            r"modprobe vhost_net, or set vhost = false",
        ),
        (lambda path: path.mkdir(), r"vhost-net cannot be used \(.*Is a directory\): chown root"),
    ],
)
def test_without_vhost_net_it_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    device = tmp_path / "vhost-net"
    make(device)
    nics = [NicSpec("t0", "m", vhost=True)]
    for act in (lambda: vhost.require(device), lambda: vhost.opened(nics, device).__enter__()):
        with pytest.raises(VmError, match=said) as raised:
            act()
        assert "\n" not in str(raised.value)
    with vhost.opened([NicSpec("t0", "m")], device) as fds:
        assert fds == ()


def test_vhost_is_looked_at_before_anything_starts() -> None:
    assert "vhost-net" not in [name for name, _ in images.checks(_with())]
    assert "vhost-net" in [name for name, _ in images.checks(_with(nic="vhost = true"))]


# --- both hosts -----------------------------------------------------------------------------


def _described(config: Config, sizes: tuple[int, ...] = (1 << 30, 20480)) -> dict[str, str]:
    return own_compatibility.described(config, "tcg", "7.2", list(sizes[: len(config.vm.disk)]))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"disk": 'bus = "virtio-scsi"'}, "hardware is none on a and bus virtio-scsi of disk 0 on"),
        ({"nic": "queues = 4"}, "hardware is none on a and queues 4 of NIC 0 on b"),
        ({"nic": "vhost = true"}, "hardware is none on a and vhost of NIC 0 on b"),
        ({"more": SEED}, "number of disks is 1 on a and 2 on b"),
    ],
)
def test_hosts_that_differ_in_it_are_not_paired(keys: dict[str, str], named: str) -> None:
    theirs = _described(_with(**keys))
    assert named in compatibility.difference(_described(_with()), theirs, "a", "b")
    assert compatibility.difference(theirs, dict(theirs), "a", "b") == ""


async def test_images_that_are_only_read_are_compared_by_digest(tmp_path: Path) -> None:
    found = []
    for host, content in (("a", b"x"), ("b", b"x"), ("c", b"y"), ("d", None)):
        path = tmp_path / f"{host}.iso"
        if content is not None:
            path.write_bytes(content * 20480)
        config = _with(more=SEED.replace("/seed.iso", str(path)))
        found.append(await own_compatibility.compatibility_of(config, "tcg"))
    a, b, c, d = found
    assert a["hardware"] == "readonly of disk 1"
    assert compatibility.difference(a, b, "a", "b") == ""
    assert compatibility.difference(a, c, "a", "c").startswith("digest of disk 1 is ")
    assert compatibility.difference(a, d, "a", "d") == "", "what cannot be read is not compared"
