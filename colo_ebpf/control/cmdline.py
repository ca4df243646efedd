# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line, pure.

Both sides get the same devices in the same order. The NICs offload checksums and TCP
segmentation; UDP fragmentation is not offered, the data plane would drop such frames.

A VM that its guest powers off is kept, standing: QEMU would end at once else, before that is
written down. One whose guest panics runs on as the guest wants it: QEMU cannot take a checkpoint of
one that it stopped for that.

Each disk: a quorum (fifo, threshold 1) under a throttle node that lets it be mirrored while it
runs; on the secondary the quorum's child is QEMU's `replication` driver over the local image (QEMU
docs/system/qemu-colo). Disks are told apart by their number, which every node's name ends in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.model import VmRole

_NOT_OFFERED = ("guest_ufo", "host_ufo")
# A device whose guest forbids it DMA (bus master off), as a kernel does while it looks for devices,
# is marked, and the mark is migrated only if it is set. If a checkpoint comes while the replica's
# device is marked and the primary's is not, the mark stays for good: the VM that takes over has
# neither network nor disk. Without DMA a device does nothing anyway; the mark only says so.
_NO_MARKS = "virtio-device.use-disabled-flag=off"
_PEER_NODE = "nbd"
REPLICAS = "replicas.json"  # in the run directory
SYNC_JOB = "colo-sync"  # the jobs that copy the disks to a new secondary; a number follows


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk of the VM on one host, and what its parts are called in QEMU."""

    number: int
    path: Path
    format: str
    overlay_dir: Path
    overlay_limit_bytes: int = 0  # 0: a share of what the file system has

    @property
    def device(self) -> str:
        """What the guest uses."""
        return f"colo-disk{self.number}"

    @property
    def quorum(self) -> str:
        """Writes to the local image and, in a pair, to the secondary's."""
        return f"quorum{self.number}"

    @property
    def image(self) -> str:
        """The local image; also the name of its export."""
        return f"parent{self.number}"

    @property
    def replica(self) -> str:
        """Secondary: keeps apart what its own VM writes."""
        return f"childs{self.number}"

    @property
    def peer_node(self) -> str:
        """Primary: the secondary's export, as a child of the quorum."""
        return f"{_PEER_NODE}{self.number}"

    @property
    def overlays(self) -> tuple[Path, Path]:
        """Active and hidden overlay of the secondary."""
        n = self.number
        return self.overlay_dir / f"active{n}.qcow2", self.overlay_dir / f"hidden{n}.qcow2"


def is_peer_node(name: str) -> bool:
    """A node of the secondary's export, of whichever disk."""
    return name.startswith(_PEER_NODE) and name[len(_PEER_NODE) :].isdigit()


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM on one host, as QEMU needs to know it."""

    name: str
    host: str
    qemu: str
    kernel: str
    initrd: str
    append: str
    memory_mib: int
    cpus: int
    accel: str  # "kvm" or "tcg"
    machine: str
    preload: str  # library for TCG, "" for none
    nics: tuple[tuple[str, str], ...]  # tap and MAC of each
    disks: tuple[DiskSpec, ...]
    run_dir: Path
    link_address: str
    nbd_port: int
    migration_port: int
    qmp_timeout_ms: int
    hang_timeout_ms: int
    reconnect_s: int  # so long a lost NBD connection blocks a write before it fails it
    start_timeout_ms: int
    sync_timeout_ms: int
    checkpoint_timeout_ms: int
    extra_args: tuple[str, ...] = ()


def monitor_path(spec: VmSpec) -> Path:
    """The normal monitor."""
    return spec.run_dir / "qmp.sock"


def oob_path(spec: VmSpec) -> Path:
    """The out-of-band monitor: `yank` goes through when the main loop is stuck."""
    return spec.run_dir / "qmp-oob.sock"


def lending_path(spec: VmSpec) -> Path:
    """Where a primary's images can be read while they are compared."""
    return spec.run_dir / "images.sock"


def lineage_path(spec: VmSpec) -> Path:
    """Of which replicas the images are the remains."""
    return spec.run_dir / REPLICAS


def trace_path(spec: VmSpec, instance: str) -> Path:
    """QEMU's COLO trace of one instance; outlives the daemon."""
    return spec.run_dir / f"colo-{instance.rpartition('/')[2]}.trace"


def events_path(spec: VmSpec, instance: str) -> Path:
    """QEMU's events of one instance, without `.in` and `.out`; they outlive the daemon."""
    return spec.run_dir / f"events-{instance.rpartition('/')[2]}"


def _drives(disk: DiskSpec, role: VmRole) -> list[str]:
    drives = [
        f"if=none,id={disk.image},driver={disk.format},file.driver=file,file.filename={disk.path}"
    ]
    child = disk.image
    if role is VmRole.SECONDARY:
        child = disk.replica
        active, hidden = disk.overlays
        drives.append(
            f"if=none,node-name={child},driver=replication,mode=secondary,top-id={disk.device},"
            f"file.driver=qcow2,file.file.driver=file,file.file.filename={active},"
            f"file.backing.driver=qcow2,file.backing.file.driver=file,"
            f"file.backing.file.filename={hidden},file.backing.backing={disk.image}"
        )
    drives.append(
        f"if=none,id={disk.device},driver=throttle,throttle-group=throttle0,"
        f"werror=report,rerror=report,"
        f"file.driver=quorum,file.node-name={disk.quorum},file.read-pattern=fifo,"
        f"file.vote-threshold=1,file.children.0={child}"
    )
    return drives


def _disks(spec: VmSpec, role: VmRole) -> list[str]:
    args = ["-object", "throttle-group,id=throttle0"]
    for disk in spec.disks:
        for drive in _drives(disk, role):
            args += ["-drive", drive]
        args += ["-device", f"virtio-blk-pci,id=disk{disk.number},drive={disk.device}"]
    return args


def _network(spec: VmSpec, taps: Sequence[int]) -> list[str]:
    off = ",".join(f"{name}=off" for name in _NOT_OFFERED)
    args = []
    for n, ((_, mac), fd) in enumerate(zip(spec.nics, taps, strict=True)):
        args += ["-netdev", f"tap,id=net{n},fd={fd},vhost=off"]
        args += ["-device", f"virtio-net-pci,id=nic{n},netdev=net{n},mac={mac},romfile=,{off}"]
    return args


def _monitors(spec: VmSpec, instance: str) -> list[str]:
    args = ["-chardev", f"pipe,id=mon2,path={events_path(spec, instance)}"]
    args += ["-mon", "chardev=mon2,mode=control"]
    for name, path in (("mon0", monitor_path(spec)), ("mon1", oob_path(spec))):
        args += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        args += ["-mon", f"chardev={name},mode=control"]
    return args


def command_line(spec: VmSpec, role: VmRole, instance: str, taps: Sequence[int]) -> list[str]:
    """argv of the VM's QEMU, which inherits `taps`, a descriptor for each NIC.

    A primary starts stopped, a secondary waits for a migration.
    """
    boot = ["-kernel", spec.kernel] if spec.kernel else []
    if spec.initrd:
        boot += ["-initrd", spec.initrd]
    if spec.append:
        boot += ["-append", spec.append]
    return [
        spec.qemu,
        "-name",
        f"{spec.name}@{instance}",
        "-machine",
        f"{spec.machine},accel={spec.accel}",
        "-cpu",
        "host" if spec.accel == "kvm" else "max",
        "-smp",
        str(spec.cpus),
        "-m",
        str(spec.memory_mib),
        "-nodefaults",
        "-display",
        "none",
        *("-action", "shutdown=pause,panic=none"),
        "-serial",
        f"file:{spec.run_dir / 'serial.log'}",
        "-trace",
        "colo_*",
        "-D",
        str(trace_path(spec, instance)),
        *("-global", _NO_MARKS),
        *boot,
        *_monitors(spec, instance),
        *_network(spec, taps),
        *_disks(spec, role),
        *("-device", "pvpanic"),
        *spec.extra_args,
        *(["-S"] if role is VmRole.PRIMARY else ["-incoming", "defer"]),
    ]
