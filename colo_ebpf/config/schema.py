# SPDX-License-Identifier: GPL-2.0-only
"""Every table and key of the configuration file, with its default and its range.

Keys are in kebab-case. Times are in milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Device = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")]
Uuid = Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$")]
Mac = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$")]
User = Annotated[str, Meta(pattern=r"^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Ms = Annotated[int, Meta(ge=1, le=3_600_000)]
MibPerS = Annotated[int, Meta(ge=0, le=1 << 20)]
CACHE_DIR = "/var/cache/colo-ebpf"
Count = Annotated[int, Meta(ge=16, le=1 << 20)]
Slot = Annotated[int, Meta(ge=0, le=31)]


class Nic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One network card of the guest. `slot`: its place on the PCI bus; 0: QEMU chooses.

    `any_mac`: the guest may speak with other addresses than `mac`.
    `vlan`: of what the guest sends without a tag, on a bridge that filters VLANs; 0: the bridge's
    own for a new port. `trunk`: those it may tag itself.
    `queues`: pairs of them, for as many processors. `vhost`: the kernel carries the frames.
    """

    mac: Mac
    any_mac: bool = False
    tap: Device
    bridge: Device
    mtu: Annotated[int, Meta(ge=576, le=9000)] = 1500
    slot: Slot = 0
    vlan: Annotated[int, Meta(ge=0, le=4094)] = 0
    trunk: Annotated[list[Annotated[int, Meta(ge=1, le=4094)]], Meta(max_length=64)] = []
    queues: Annotated[int, Meta(ge=1, le=8)] = 1
    vhost: bool = False


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One disk of the guest. `overlay_limit_mib` 0: a share of what is free in `overlay_dir`.

    `path`: a file or a block device. `sector_bytes`: what the guest sees, the same on both hosts.
    `boot_order`: 1 is tried first; 0: the disks are tried in the order of their tables. `serial`:
    what the guest finds below `/dev/disk/by-id`. `slot`: its place on the PCI bus; 0: QEMU chooses.
    `readonly`: the guest cannot write it, so it has no overlays; on virtio-scsi a CD-ROM.
    `x_shared`: it is one and the same disk on both hosts; not safe yet.
    """

    path: str
    overlay_dir: str = ""
    bus: Annotated[str, Meta(pattern="^(virtio-blk|virtio-scsi)$")] = "virtio-blk"
    readonly: bool = False
    x_shared: bool = False
    format: Annotated[str, Meta(pattern="^(raw|qcow2)$")] = "raw"
    sector_bytes: Literal[512, 4096] = 512
    overlay_limit_mib: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    boot_order: Annotated[int, Meta(ge=0, le=8)] = 0
    serial: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,20}$")] = ""
    slot: Slot = 0


class VmTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[vm]``: the guest, the same on both hosts but for paths.

    `cpu`: QEMU's name of a model; empty: the host's under KVM, all that TCG can do under TCG.
    `firmware`, `firmware_vars`: flash images; empty: SeaBIOS. `uuid`: of the SMBIOS; empty: none.
    `clock`: what the hardware clock shows, local time for Windows. `rng`: a virtio-rng. `vga`: a
    display, with VNC on `qemu/vnc.sock` in the run directory.
    `user`: who QEMU is, a name or a number; `root`: it is not confined.
    """

    name: Name
    nic: Annotated[list[Nic], Meta(min_length=1, max_length=8)]
    disk: Annotated[list[Disk], Meta(min_length=1, max_length=8)]
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    memory_mib: Annotated[int, Meta(ge=16, le=1 << 22)] = 128
    cpus: Annotated[int, Meta(ge=1, le=288)] = 1
    accel: Annotated[str, Meta(pattern="^(auto|kvm|tcg)$")] = "auto"
    machine: str = "pc"
    cpu: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][^\s]*)?$")] = ""
    firmware: str = ""
    firmware_vars: str = ""
    uuid: Uuid = ""
    clock: Annotated[str, Meta(pattern="^(utc|localtime)$")] = "utc"
    rng: bool = False
    vga: bool = False
    qemu: str = "qemu-system-x86_64"
    user: User = "colo-qemu"
    extra_args: list[str] = []
    preload: str = ""

    @property
    def shared_disks(self) -> list[Disk]:
        """Both hosts have the same."""
        return [disk for disk in self.disk if disk.x_shared]


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[host]``: this host. `cache_dir` is for all VMs of the host: what was compiled.

    Without `run_dir` and `state_dir`: `/run/colo-ebpf/NAME` and `/var/lib/colo-ebpf/NAME`.
    """

    name: Name
    run_dir: str = ""
    state_dir: str = ""
    bpffs: str = "/sys/fs/bpf"
    cache_dir: str = CACHE_DIR


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[peer]``: the other host."""

    name: Name
    link_address: str
    management_address: str
    key_file: str


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[link]``: the way between the hosts that carries frames, memory and disk.

    What is left out follows from the VM's name: `defaults`.
    `security`: what seals it. `auto`: the first that the kernel has; `none` has to be written.
    `wireguard_port`: used with `security = "wireguard"` alone.
    The rates are those of making a replica; 0: as fast as it goes.
    """

    address: str
    underlay: Device
    security: Literal["auto", "ipsec", "wireguard", "none"] = "auto"
    device: Device = ""
    vxlan_port: Port = 0
    nbd_port: Port = 0
    migration_port: Port = 0
    heartbeat_port: Port = 0
    wireguard_port: Port = 0
    disk_rate_mib_s: MibPerS = 0
    memory_rate_mib_s: MibPerS = 0


class Management(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[management]``: the other way between the hosts."""

    address: str


class ArbiterTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[arbiter]``: where the record is kept: a directory, or an etcd cluster."""

    kind: Annotated[str, Meta(pattern="^(file|etcd)$")] = "file"
    path: str = ""
    endpoints: list[str] = []
    prefix: Annotated[str, Meta(pattern=r"^(/[A-Za-z0-9._-]+)+$")] = "/colo-ebpf"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[timing]``: every deadline."""

    heartbeat_ms: Ms = 30
    peer_timeout_ms: Ms = 150
    link_timeout_ms: Ms = 100
    compare_timeout_ms: Ms = 100
    arm_timeout_ms: Ms = 200
    longest_epoch_ms: Ms = 60_000
    qmp_timeout_ms: Ms = 5000
    hang_timeout_ms: Ms = 1000
    checkpoint_timeout_ms: Ms = 10_000
    daemon_grace_ms: Ms = 30_000
    arbiter_timeout_ms: Ms = 2000
    start_timeout_ms: Ms = 60_000
    sync_timeout_ms: Ms = 600_000


class Checkpoint(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[checkpoint]``: when one is taken.

    `compare`: when the VMs differ; `periodic`: every `period_ms` while output waits, or, with 0, as
    soon as output waits; `auto`: whichever lets answers wait less. `max_pause_ms` 0: no bound.
    """

    mode: Annotated[str, Meta(pattern="^(auto|compare|periodic)$")] = "auto"
    period_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    longest_wait_ms: Ms = 2000
    max_pause_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0


class Datapath(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[datapath]``: capacities; the number of buckets is a power of two.

    `hooks`: what holds the programs. `auto`: TCX links, which nobody else can take off, if the
    kernel has them (6.6), else clsact filters; `tcx` insists.
    """

    flows: Count = 65536
    hold_mib: Annotated[int, Meta(ge=1, le=4096)] = 128
    datagram_buckets: Count = 2048
    hooks: Annotated[str, Meta(pattern="^(auto|tcx|clsact)$")] = "auto"


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[start]``: what this host is when the VM never ran. Later the record knows."""

    role: Annotated[str, Meta(pattern="^(primary|secondary)$")]
    realtime_priority: Annotated[int, Meta(ge=0, le=99)] = 10


class FenceTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[fence]``: the command that turns the other host off, and when it is run.

    `reservation`: of the shared disks, for the host that may write to them.
    """

    command: list[str] = []
    reservation: bool = False
    when: Annotated[str, Meta(pattern="^(off|before-solo|after-solo)$")] = "off"
    timeout_ms: Ms = 10_000


class NotifyTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[notify]``: the command that is told of changes of state; empty: none."""

    command: list[str] = []
    timeout_ms: Ms = 10_000


class WatchdogTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[watchdog]``: the device that resets this host; empty: none."""

    device: str = ""
    timeout_s: Annotated[int, Meta(ge=10, le=3600)] = 30


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The whole file."""

    vm: VmTable
    host: Host
    peer: Peer
    link: Link
    management: Management
    arbiter: ArbiterTable
    start: Start
    timing: Timing = Timing()
    checkpoint: Checkpoint = Checkpoint()
    datapath: Datapath = Datapath()
    fence: FenceTable = FenceTable()
    notify: NotifyTable = NotifyTable()
    watchdog: WatchdogTable = WatchdogTable()
