# SPDX-License-Identifier: GPL-2.0-only
"""From the configuration file to what each part needs to know. Pure."""

from __future__ import annotations

from pathlib import Path

from colo_ebpf.config import Config
from colo_ebpf.control import facts
from colo_ebpf.control.cmdline import DiskSpec, VmSpec
from colo_ebpf.control.facts import MS
from colo_ebpf.control.fence import FenceCommand
from colo_ebpf.control.watchdog import Watchdog
from colo_ebpf.datapath.loader import Sizes, frame_bytes, hold_slots
from colo_ebpf.datapath.plane import PlaneNic, PlaneSpec
from colo_ebpf.errors import ConfigError

KEY_LEAST_BYTES = 16


def who(config: Config) -> facts.Who:
    """Who this daemon is."""
    return facts.Who(
        vm=config.vm.name,
        host=config.host.name,
        peer=config.peer.name,
        peer_link_address=config.peer.link_address,
        starts=config.start.role == "primary",
    )


def _pacing(config: Config) -> facts.Pacing:
    """How checkpoints come about."""
    table = config.checkpoint
    return facts.Pacing(
        wanted=facts.Wanted(table.mode),
        period_ns=table.period_ms * MS,
        longest_wait_ns=table.longest_wait_ms * MS,
        max_pause_ns=table.max_pause_ms * MS,
    )


def timing(config: Config) -> facts.Timing:
    """The deadlines of the decisions."""
    t = config.timing
    return facts.Timing(
        heartbeat_ns=t.heartbeat_ms * MS,
        peer_timeout_ns=t.peer_timeout_ms * MS,
        compare_timeout_ns=t.compare_timeout_ms * MS,
        arm_timeout_ns=t.arm_timeout_ms * MS,
        longest_epoch_ns=t.longest_epoch_ms * MS,
        qmp_timeout_ns=t.qmp_timeout_ms * MS,
        checkpoint_timeout_ns=t.checkpoint_timeout_ms * MS,
        daemon_grace_ns=t.daemon_grace_ms * MS,
        pacing=_pacing(config),
    )


def reconnect_s(peer_timeout_ms: int) -> int:
    """Longer than any silence the pair tolerates, so that no write fails before the pair has ended.

    Not much longer: QEMU cannot be made to give up waiting (yank reaches only sockets that are
    open), and a primary whose secondary was killed goes on alone when the time is over.
    """
    return 1 + peer_timeout_ms // 1000


def fence(config: Config) -> FenceCommand:
    """The command that turns the other host off."""
    return FenceCommand(
        command=tuple(config.fence.command),
        timeout_ms=config.fence.timeout_ms,
        vm=config.vm.name,
        host=config.host.name,
    )


def watchdog(config: Config) -> Watchdog:
    """The device that resets this host if the daemon hangs while the VM here may speak."""
    return Watchdog(config.watchdog.device, config.watchdog.timeout_s)


def vm_spec(config: Config, accel: str) -> VmSpec:
    """The VM, with the accelerator that was chosen."""
    vm, t = config.vm, config.timing
    return VmSpec(
        name=vm.name,
        host=config.host.name,
        qemu=vm.qemu,
        kernel=vm.kernel,
        initrd=vm.initrd,
        append=vm.append,
        memory_mib=vm.memory_mib,
        cpus=vm.cpus,
        accel=accel,
        machine=vm.machine,
        preload=vm.preload,
        nics=tuple((nic.tap, nic.mac) for nic in vm.nic),
        disks=tuple(
            DiskSpec(
                number=number,
                path=Path(disk.path),
                format=disk.format,
                overlay_dir=Path(disk.overlay_dir),
                overlay_limit_bytes=disk.overlay_limit_mib << 20,
            )
            for number, disk in enumerate(vm.disk)
        ),
        run_dir=Path(config.host.run_dir),
        link_address=config.link.address,
        nbd_port=config.link.nbd_port,
        migration_port=config.link.migration_port,
        qmp_timeout_ms=t.qmp_timeout_ms,
        hang_timeout_ms=t.hang_timeout_ms,
        reconnect_s=reconnect_s(t.peer_timeout_ms),
        start_timeout_ms=t.start_timeout_ms,
        sync_timeout_ms=t.sync_timeout_ms,
        checkpoint_timeout_ms=t.checkpoint_timeout_ms,
        extra_args=tuple(vm.extra_args),
    )


def plane_spec(config: Config) -> PlaneSpec:
    """The data plane of the VM."""
    link, sizes = config.link, config.datapath
    nics = tuple(PlaneNic(nic.tap, nic.bridge, nic.mtu) for nic in config.vm.nic)
    frame = frame_bytes(max(nic.mtu for nic in nics))
    return PlaneSpec(
        vm=config.vm.name,
        bpffs=Path(config.host.bpffs),
        cache=Path(config.host.cache_dir),
        nics=nics,
        link_device=link.device,
        underlay=link.underlay,
        vxlan_port=link.vxlan_port,
        link_address=link.address,
        link_timeout_ms=config.timing.link_timeout_ms,
        notes_last_ms=config.checkpoint.longest_wait_ms,
        heartbeat_ms=config.timing.heartbeat_ms,
        sizes=Sizes(sizes.flows, hold_slots(sizes.hold_mib, frame), sizes.datagram_buckets, frame),
    )


def key(config: Config) -> bytes:
    """The heartbeats' key; ConfigError if it is missing, short or open to others."""
    path = Path(config.peer.key_file)
    try:
        mode, data = path.stat().st_mode, path.read_bytes().strip()
    except OSError as e:
        raise ConfigError(f"peer.key-file: {path}: {e.strerror}") from e
    if mode & 0o077:
        raise ConfigError(f"peer.key-file: {path} can be read by others: chmod 600 {path}")
    if len(data) < KEY_LEAST_BYTES:
        raise ConfigError(
            f"peer.key-file: {path} holds {len(data)} bytes, at least {KEY_LEAST_BYTES} are needed:"
            f" head -c 32 /dev/urandom | base64 > {path}"
        )
    return data
