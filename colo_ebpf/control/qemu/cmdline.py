# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line, pure.

Both sides get the same devices in the same order. The NICs offload checksums and TCP
segmentation; UDP fragmentation is not offered, the data plane would drop such frames.

A VM that its guest powers off is kept, standing: QEMU would end at once else, before that is
written down. One whose guest panics runs on as the guest wants it: QEMU cannot take a checkpoint of
one that it stopped for that.

Each disk: a quorum (fifo, threshold 1) under a throttle node that lets it be mirrored while it
runs; on the secondary the quorum's child is QEMU's `replication` driver over the local image (QEMU
docs/system/qemu-colo). Disks are told apart by their number, which every node's name ends in. One
that the guest cannot write is its image and nothing else, on both sides.

A disk that both hosts reach (`shared`) has the same graph. There the hidden overlay is copied to on
read: such a read holds up a write of the same cluster, so that the primary's VM cannot overwrite
what a read of the secondary's VM is about to find (docs/decisions/shared-disk.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.control.interfaces import PEER_NODE
from colo_ebpf.model import VmRole

_NOT_OFFERED = ("guest_ufo", "host_ufo")
_LAST_ORDER = 9  # above what `boot-order` may be
_SCSI = "scsi0"  # the controller of all SCSI disks
_USUAL_MTU = 1500  # what a guest takes unless it is told another
# A device whose guest forbids it DMA (bus master off), as a kernel does while it looks for devices,
# is marked, and the mark is migrated only if it is set. If a checkpoint comes while the replica's
# device is marked and the primary's is not, the mark stays for good: the VM that takes over has
# neither network nor disk. Without DMA a device does nothing anyway; the mark only says so.
_NO_MARKS = "virtio-device.use-disabled-flag=off"
# Descriptors that QEMU is started with: the sockets that it listens on, one for each queue of each
# tap, and one for each that vhost-net serves. It need not be able to make files.
MONITOR_FD, OOB_FD, CONSOLE_FD, TAP_FD = 10, 11, 12, 13
# What the kernel is to refuse it (seccomp(2)): old system calls, other users and capabilities,
# other programs, other priorities. extra-args come later, and win.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
VIRTIO_BLK, VIRTIO_SCSI = "virtio-blk", "virtio-scsi"  # what a disk may be on
REPLICAS = "replicas.json"  # in the run directory
SYNC_JOB = "colo-sync"  # the jobs that copy the disks to a new secondary; a number follows
OLD_JOB = "colo-old"  # the jobs that keep what shared disks had; a number follows


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk of the VM on one host, and what its parts are called in QEMU."""

    number: int
    path: Path
    format: str
    overlay_dir: Path
    overlay_limit_bytes: int = 0  # 0: a share of what the file system has
    sector_bytes: int = 512  # as the guest sees them
    boot_order: int = 0  # 0: by its number
    serial: str = ""
    slot: int = 0  # on the PCI bus; 0: QEMU chooses
    shared: bool = False  # the same disk on both hosts, nothing is copied
    bus: str = VIRTIO_BLK
    readonly: bool = False  # the guest reads the image itself: nothing is replicated

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
        """The local image."""
        return f"parent{self.number}"

    @property
    def hidden(self) -> str:
        """Secondary: of a shared disk, what the primary's VM has overwritten in this epoch."""
        return f"hidden{self.number}"

    @property
    def hidden_drive(self) -> str:
        """What QEMU calls it as a drive, until it has the active overlay above it."""
        return f"hidden-drive{self.number}"

    @property
    def export(self) -> str:
        """Secondary: the node that the primary writes to; also the name of its export."""
        return self.hidden if self.shared else self.image

    @property
    def replica(self) -> str:
        """Secondary: keeps apart what its own VM writes."""
        return f"childs{self.number}"

    @property
    def peer_node(self) -> str:
        """Primary: the secondary's export, as a child of the quorum."""
        return f"{PEER_NODE}{self.number}"

    @property
    def overlays(self) -> tuple[Path, Path]:
        """Active and hidden overlay of the secondary."""
        n = self.number
        return self.overlay_dir / f"active{n}.qcow2", self.overlay_dir / f"hidden{n}.qcow2"

    @property
    def digests(self) -> Path:
        """Secondary: of its image as it was, until it is a replica."""
        return self.overlay_dir / f"digests{self.number}"


@dataclass(frozen=True, slots=True)
class NicSpec:
    """One network card of the VM on one host."""

    tap: str
    mac: str
    mtu: int = _USUAL_MTU
    slot: int = 0  # on the PCI bus; 0: QEMU chooses
    queues: int = 1  # pairs of them
    vhost: bool = False  # the kernel carries its frames, else QEMU does


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the guest has beside disks and NICs."""

    local_time: bool = False  # else the hardware clock shows UTC
    rng: bool = False
    vga: bool = False


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
    nics: tuple[NicSpec, ...]
    disks: tuple[DiskSpec, ...]
    run_dir: Path
    link_address: str
    peer_address: str  # on the link: nobody else is listened to
    nbd_port: int
    migration_port: int
    qmp_timeout_ms: int
    hang_timeout_ms: int
    reconnect_s: int  # so long a lost NBD connection blocks a write before it fails it
    start_timeout_ms: int  # of a migration: without progress
    sync_timeout_ms: int  # without progress
    checkpoint_timeout_ms: int
    disk_rate_bytes: int = 0  # a second, of all disks together; 0: as fast as it goes
    memory_rate_bytes: int = 0
    cpu_model: str = ""  # "": the best the accelerator has
    firmware: tuple[Path, Path] | None = None  # code and variables; None: SeaBIOS
    uuid: str = ""
    hardware: Hardware = Hardware()
    link_device: str = ""  # the only one by which the peer is listened to; "": any
    extra_args: tuple[str, ...] = ()

    @property
    def replicated(self) -> tuple[DiskSpec, ...]:
        """The disks that the guest writes to."""
        return tuple(disk for disk in self.disks if not disk.readonly)

    @property
    def copied_disks(self) -> tuple[DiskSpec, ...]:
        """Each host has its own image of them."""
        return tuple(disk for disk in self.disks if not (disk.shared or disk.readonly))

    @property
    def shared_disks(self) -> tuple[DiskSpec, ...]:
        """Both hosts have the same."""
        return tuple(disk for disk in self.disks if disk.shared)


def monitor_path(spec: VmSpec) -> Path:
    """The normal monitor."""
    return spec.run_dir / "qmp.sock"


def oob_path(spec: VmSpec) -> Path:
    """The out-of-band monitor: `yank` goes through when the main loop is stuck."""
    return spec.run_dir / "qmp-oob.sock"


def lending_path(spec: VmSpec) -> Path:
    """Where a primary's images can be read while they are compared."""
    return spec.run_dir / "images.sock"


def console_path(spec: VmSpec) -> Path:
    """The guest's serial console, a socket."""
    return spec.run_dir / "console.sock"


def own_directory(spec: VmSpec) -> Path:
    """Where QEMU may make files: VNC's socket, and what extra-args ask for."""
    return spec.run_dir / "qemu"


def data_generation_path(spec: VmSpec) -> Path:
    """Of which replicas the images are the remains."""
    return spec.run_dir / REPLICAS


def log_path(spec: VmSpec) -> Path:
    """What QEMUs of this VM write to stdout and stderr."""
    return spec.run_dir / "qemu.log"


def vnc_path(spec: VmSpec) -> Path:
    """The guest's display, if it has one: a socket that speaks VNC."""
    return own_directory(spec) / "vnc.sock"


def console_log_path(spec: VmSpec) -> Path:
    """What the guest writes to its first serial port."""
    return spec.run_dir / "serial.log"


def trace_path(spec: VmSpec, instance: str) -> Path:
    """QEMU's COLO trace of one instance; outlives the daemon."""
    return spec.run_dir / f"colo-{instance.rpartition('/')[2]}.trace"


def events_path(spec: VmSpec, instance: str) -> Path:
    """QEMU's events of one instance, without `.in` and `.out`; they outlive the daemon."""
    return spec.run_dir / f"events-{instance.rpartition('/')[2]}"


def _image(disk: DiskSpec, role: VmRole, protocol: str) -> str:
    """QEMU 10 writes zeros wherever the image that is copied has none: they are to take no room.

    A shared one bypasses the host's cache, which another host's writes do not reach, and QEMU's
    lock, which no second QEMU would get."""
    shared = ",file.locking=off,cache.direct=on" if disk.shared else ""
    unmap = "discard=unmap," if role is VmRole.SECONDARY and not disk.shared else ""
    return (
        f"if=none,id={disk.image},{unmap}driver={disk.format},file.driver={protocol},"
        f"file.filename={disk.path}{shared}"
    )


def _replica(disk: DiskSpec) -> str:
    """The overlays of a secondary over the image; of a shared disk, the hidden one: only a drive
    can be copied to on read. `block` puts the rest above it."""
    active, hidden = disk.overlays
    if disk.shared:
        return (
            f"if=none,id={disk.hidden_drive},node-name={disk.hidden},driver=qcow2,"
            f"file.driver=file,file.filename={hidden},backing={disk.image},copy-on-read=on"
        )
    return (
        f"if=none,node-name={disk.replica},driver=replication,mode=secondary,top-id={disk.device},"
        f"file.driver=qcow2,file.file.driver=file,file.file.filename={active},"
        f"file.backing.driver=qcow2,file.backing.file.driver=file,"
        f"file.backing.file.filename={hidden},file.backing.backing={disk.image}"
    )


def _drives(disk: DiskSpec, role: VmRole, protocol: str) -> list[str]:
    """A guest's write to a shared disk that cannot be done stops the VM and is done again when the
    VM runs on: it may have failed because the secondary is gone, which the guest is not told."""
    if disk.readonly:
        return [
            f"if=none,id={disk.device},driver={disk.format},file.driver={protocol},"
            f"file.filename={disk.path},readonly=on,rerror=report"
        ]
    drives = [_image(disk, role, protocol)]
    if role is VmRole.SECONDARY:
        drives.append(_replica(disk))
    child = disk.replica if role is VmRole.SECONDARY and not disk.shared else disk.image
    werror = "stop" if disk.shared else "report"
    drives.append(
        f"if=none,id={disk.device},driver=throttle,throttle-group=throttle0,"
        f"werror={werror},rerror=report,"
        f"file.driver=quorum,file.node-name={disk.quorum},file.read-pattern=fifo,"
        f"file.vote-threshold=1,file.children.0={child}"
    )
    return drives


def _disks(spec: VmSpec, role: VmRole, protocols: Sequence[str]) -> list[str]:
    args = ["-object", "throttle-group,id=throttle0"]
    for disk, protocol in zip(spec.disks, protocols, strict=True):
        for drive in _drives(disk, role, protocol):
            args += ["-drive", drive]
    of_scsi = [disk for disk in spec.disks if disk.bus == VIRTIO_SCSI]
    for disk in spec.disks:
        if disk not in of_scsi:
            args += ["-device", _disk_device(spec, disk)]
    if of_scsi:  # QEMU chooses its slot: after those that were given one
        args += ["-device", f"virtio-scsi-pci,id={_SCSI}"]
    for disk in of_scsi:
        args += ["-device", _disk_device(spec, disk)]
    return args


def _disk_device(spec: VmSpec, disk: DiskSpec) -> str:
    device = f"id=disk{disk.number},drive={disk.device}"
    sectors = f",logical_block_size={disk.sector_bytes},physical_block_size={disk.sector_bytes}"
    order = "" if spec.kernel else f",bootindex={_boot_index(disk)}"
    serial = f",serial={disk.serial}" if disk.serial else ""
    if disk.bus == VIRTIO_BLK:
        return f"virtio-blk-pci,{device}{sectors}{order}{serial}{_slot(disk.slot)}"
    place = f",bus={_SCSI}.0,scsi-id={disk.number}"
    if disk.readonly:
        return f"scsi-cd,{device}{place}{order}{serial}"
    return f"scsi-hd,{device}{place}{sectors}{order}{serial}"


def _boot_index(disk: DiskSpec) -> int:
    """Those with an order of their own come first."""
    return disk.boot_order or _LAST_ORDER + disk.number


def _slot(slot: int) -> str:
    return f",addr={slot:#x}" if slot else ""


def _network(spec: VmSpec) -> list[str]:
    off = ",".join(f"{name}=off" for name in _NOT_OFFERED)
    args = []
    for n, (nic, (taps, vhosts)) in enumerate(zip(spec.nics, _nic_fds(spec.nics), strict=True)):
        told = "" if nic.mtu == _USUAL_MTU else f"host_mtu={nic.mtu},"
        vhost = f"vhost=on,{_fds('vhostfd', vhosts)}" if nic.vhost else "vhost=off"
        args += ["-netdev", f"tap,id=net{n},{_fds('fd', taps)},{vhost}"]
        device = f"virtio-net-pci,id=nic{n},netdev=net{n},mac={nic.mac},romfile=,{told}{off}"
        args += ["-device", device + _queues(nic) + _slot(nic.slot)]
    return args


def _nic_fds(nics: Sequence[NicSpec]) -> Iterator[tuple[range, range]]:
    """Of each: of its queues of the tap, and of its vhosts. Those of all taps come first."""
    tap, vhost = TAP_FD, TAP_FD + sum(nic.queues for nic in nics)
    for nic in nics:
        vhosts = nic.queues if nic.vhost else 0
        yield range(tap, tap + nic.queues), range(vhost, vhost + vhosts)
        tap, vhost = tap + nic.queues, vhost + vhosts


def _fds(key: str, numbers: range) -> str:
    """QEMU has another key for several."""
    return f"{key}{'s' if len(numbers) > 1 else ''}={':'.join(map(str, numbers))}"


def _queues(nic: NicSpec) -> str:
    """An interrupt for each queue of a pair, one for changes, one for the control queue."""
    return f",mq=on,vectors={2 * nic.queues + 2}" if nic.queues > 1 else ""


def _console(spec: VmSpec) -> list[str]:
    """The guest's first serial port: what it says is in a file, and whoever connects may answer."""
    where = f"fd={CONSOLE_FD},server=on,wait=off"
    log = f"logfile={console_log_path(spec)},logappend=on"  # the daemon cuts it
    return ["-chardev", f"socket,id=console,{where},{log}", "-serial", "chardev:console"]


def _display(spec: VmSpec) -> list[str]:
    """Its own place is slot 2; what a viewer types reaches this VM alone."""
    return ["-vga", "std", "-vnc", f"unix:{vnc_path(spec)}"] if spec.hardware.vga else []


def _clock(spec: VmSpec) -> list[str]:
    return ["-rtc", "base=localtime"] if spec.hardware.local_time else []


def _rng(spec: VmSpec) -> list[str]:
    if not spec.hardware.rng:
        return []
    source = "rng-random,id=rng0,filename=/dev/urandom"
    return ["-object", source, "-device", "virtio-rng-pci,rng=rng0"]


def _firmware(spec: VmSpec) -> list[str]:
    """Flash. What the guest writes there is memory to QEMU: the replica has it, too."""
    if spec.firmware is None:
        return []
    code, variables = spec.firmware
    return [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
    ]


def _monitors(spec: VmSpec, instance: str) -> list[str]:
    args = ["-chardev", f"pipe,id=mon2,path={events_path(spec, instance)}"]
    args += ["-mon", "chardev=mon2,mode=control"]
    for name, fd in (("mon0", MONITOR_FD), ("mon1", OOB_FD)):
        args += ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]
        args += ["-mon", f"chardev={name},mode=control"]
    return args


def command_line(spec: VmSpec, role: VmRole, instance: str, protocols: Sequence[str]) -> list[str]:
    """argv of the VM's QEMU, which inherits the descriptors above.

    `protocols`: the driver for each disk's path (`storage.image.protocol`). A primary starts
    stopped, a secondary waits for a migration.
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
        spec.cpu_model or ("host" if spec.accel == "kvm" else "max"),
        *(["-uuid", spec.uuid] if spec.uuid else []),
        "-smp",
        str(spec.cpus),
        "-m",
        str(spec.memory_mib),
        "-nodefaults",
        "-display",
        "none",
        *_display(spec),
        *_clock(spec),
        *("-sandbox", _SANDBOX),
        *("-action", "shutdown=pause,panic=none"),
        *_console(spec),
        "-trace",
        "colo_*",
        "-D",
        str(trace_path(spec, instance)),
        *("-global", _NO_MARKS),
        *boot,
        *_firmware(spec),
        *_monitors(spec, instance),
        *_network(spec),
        *_disks(spec, role, protocols),
        *_rng(spec),
        *("-device", "pvpanic"),
        *spec.extra_args,
        *(["-S"] if role is VmRole.PRIMARY else ["-incoming", "defer"]),
    ]
