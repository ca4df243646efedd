# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's command line, pure.

Both sides get the same devices in the same order. The NICs offload checksums and TCP
segmentation; UDP fragmentation is not offered, the data plane would drop such frames.

Disk: a quorum (fifo, threshold 1) under a throttle node that lets it be mirrored while it runs; on
the secondary the quorum's child is QEMU's `replication` driver over the local image (QEMU
docs/system/qemu-colo).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.model import VmRole

_NOT_OFFERED = ("guest_ufo", "host_ufo")
DISK = "colo-disk0"  # what the guest uses
QUORUM = "quorum0"
LOCAL_IMAGE = "parent0"  # also the name of the secondary's export
PEER_NODE = "nbd0"  # the secondary's export, as a child of the primary's quorum


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
    disk: Path
    disk_format: str
    overlay_dir: Path
    run_dir: Path
    link_address: str
    nbd_port: int
    migration_port: int
    qmp_timeout_ms: int
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


def trace_path(spec: VmSpec, instance: str) -> Path:
    """QEMU's COLO trace of one instance; outlives the daemon."""
    return spec.run_dir / f"colo-{instance.rpartition('/')[2]}.trace"


def overlay_paths(spec: VmSpec) -> tuple[Path, Path]:
    """Active and hidden overlay of the secondary."""
    return spec.overlay_dir / "active.qcow2", spec.overlay_dir / "hidden.qcow2"


def _disk(spec: VmSpec, role: VmRole) -> list[str]:
    active, hidden = overlay_paths(spec)
    drives = [
        f"if=none,id={LOCAL_IMAGE},driver={spec.disk_format},file.driver=file,"
        f"file.filename={spec.disk}"
    ]
    child = LOCAL_IMAGE
    if role is VmRole.SECONDARY:
        child = "childs0"
        drives.append(
            f"if=none,node-name={child},driver=replication,mode=secondary,top-id={DISK},"
            f"file.driver=qcow2,file.file.driver=file,file.file.filename={active},"
            f"file.backing.driver=qcow2,file.backing.file.driver=file,"
            f"file.backing.file.filename={hidden},file.backing.backing={LOCAL_IMAGE}"
        )
    drives.append(
        f"if=none,id={DISK},driver=throttle,throttle-group=throttle0,werror=report,rerror=report,"
        f"file.driver=quorum,file.node-name={QUORUM},file.read-pattern=fifo,"
        f"file.vote-threshold=1,file.children.0={child}"
    )
    args = ["-object", "throttle-group,id=throttle0"]
    for drive in drives:
        args += ["-drive", drive]
    return [*args, "-device", f"virtio-blk-pci,id=disk0,drive={DISK}"]


def _network(spec: VmSpec) -> list[str]:
    off = ",".join(f"{name}=off" for name in _NOT_OFFERED)
    args = []
    for n, (tap, mac) in enumerate(spec.nics):
        args += ["-netdev", f"tap,id=net{n},ifname={tap},script=no,downscript=no,vhost=off"]
        args += ["-device", f"virtio-net-pci,id=nic{n},netdev=net{n},mac={mac},romfile=,{off}"]
    return args


def _monitors(spec: VmSpec) -> list[str]:
    args = []
    for name, path in (("mon0", monitor_path(spec)), ("mon1", oob_path(spec))):
        args += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        args += ["-mon", f"chardev={name},mode=control"]
    return args


def command_line(spec: VmSpec, role: VmRole, instance: str) -> list[str]:
    """argv of the VM's QEMU. A primary starts stopped, a secondary waits for a migration."""
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
        "-no-shutdown",
        "-serial",
        f"file:{spec.run_dir / 'serial.log'}",
        "-trace",
        "colo_*",
        "-D",
        str(trace_path(spec, instance)),
        *boot,
        *_monitors(spec),
        *_network(spec),
        *_disk(spec, role),
        *spec.extra_args,
        *(["-S"] if role is VmRole.PRIMARY else ["-incoming", "defer"]),
    ]
