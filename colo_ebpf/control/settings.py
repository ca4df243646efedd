# SPDX-License-Identifier: GPL-2.0-only
"""From the configuration file to what each part needs to know. Pure."""

from __future__ import annotations

from pathlib import Path

import msgspec

from colo_ebpf import addresses
from colo_ebpf.config.schema import Checkpoint, Config, Timing
from colo_ebpf.control.checkpoint.pace import Pacing, Wanted
from colo_ebpf.control.decision import snapshot
from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.control.host.capabilities import User, user_of
from colo_ebpf.control.host.fence import FenceCommand
from colo_ebpf.control.host.reservations import Reservations
from colo_ebpf.control.host.state_events import Events
from colo_ebpf.control.host.watchdog import Watchdog
from colo_ebpf.control.link_seal import Between
from colo_ebpf.control.link_tunnel import Through
from colo_ebpf.control.peer.key_ring import KeyRing
from colo_ebpf.control.qemu.cmdline import DiskSpec, Hardware, NicSpec, VmSpec
from colo_ebpf.control.qemu.stalls import Secondary
from colo_ebpf.datapath.bpf.loader import Sizes, frame_bytes, hold_slots
from colo_ebpf.datapath.net.hooks import By
from colo_ebpf.datapath.net.ipsec import Ends, LinkEnds
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.datapath.net.wireguard import TunnelEnds
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.errors import ConfigError
from colo_ebpf.storage.reservation import key_of

KEY_LEAST_BYTES = 16


def who(config: Config, security: Security = Security.NONE) -> snapshot.Who:
    """Who this daemon is. `security`: what seals the link."""
    ends = tunnel_ends(config)
    tunnelled = security is Security.WIREGUARD
    return snapshot.Who(
        vm=config.vm.name,
        host=config.host.name,
        peer=config.peer.name,
        peer_link_address=ends.frames(ends.peer) if tunnelled else config.peer.link_address,
        starts=config.start.role == "primary",
        shares_disk=bool(config.vm.shared_disks),
        reserves=config.fence.reservation,
    )


def _pacing(table: Checkpoint) -> Pacing:
    """How checkpoints come about."""
    return Pacing(
        wanted=Wanted(table.mode),
        period_ns=table.period_ms * MS,
        longest_wait_ns=table.longest_wait_ms * MS,
        max_pause_ns=table.max_pause_ms * MS,
    )


def deadlines(t: Timing, checkpoint: Checkpoint) -> snapshot.Deadlines:
    """Those of the decisions."""
    return snapshot.Deadlines(
        heartbeat_ns=t.heartbeat_ms * MS,
        peer_timeout_ns=t.peer_timeout_ms * MS,
        compare_timeout_ns=t.compare_timeout_ms * MS,
        arm_timeout_ns=t.arm_timeout_ms * MS,
        longest_epoch_ns=t.longest_epoch_ms * MS,
        qmp_timeout_ns=t.qmp_timeout_ms * MS,
        checkpoint_timeout_ns=t.checkpoint_timeout_ms * MS,
        daemon_grace_ns=t.daemon_grace_ms * MS,
        pacing=_pacing(checkpoint),
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


def reservations(config: Config) -> Reservations:
    """Of the shared disks; the keys follow from the names of the VM and of the hosts."""
    own, other = (key_of(config.vm.name, one) for one in (config.host.name, config.peer.name))
    paths = tuple(Path(disk.path) for disk in config.vm.shared_disks)
    return Reservations(paths, own, other, config.fence.timeout_ms)


def events(config: Config) -> Events:
    """Who is told of changes of state."""
    table = config.notify
    names = (config.vm.name, config.host.name, config.peer.name)
    return Events(tuple(table.command), table.timeout_ms, *names)


def watchdog(config: Config) -> Watchdog:
    """The device that resets this host if the daemon hangs while the VM here may speak."""
    return Watchdog(config.watchdog.device, config.watchdog.timeout_s)


def vm_spec(config: Config, accel: str, security: Security = Security.NONE) -> VmSpec:
    """The VM, with the accelerator that was chosen. `security`: what seals the link."""
    config = carried(config, security)
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
        cpu_model=vm.cpu,
        firmware=(Path(vm.firmware), Path(vm.firmware_vars)) if vm.firmware else None,
        uuid=vm.uuid,
        preload=vm.preload,
        nics=tuple(
            NicSpec(nic.tap, nic.mac, nic.mtu, nic.slot, nic.queues, nic.vhost) for nic in vm.nic
        ),
        disks=tuple(
            DiskSpec(
                number=number,
                path=Path(disk.path),
                format=disk.format,
                overlay_dir=Path(disk.overlay_dir),
                overlay_limit_bytes=disk.overlay_limit_mib << 20,
                sector_bytes=disk.sector_bytes,
                boot_order=disk.boot_order,
                serial=disk.serial,
                slot=disk.slot,
                bus=disk.bus,
                readonly=disk.readonly,
                shared=disk.x_shared,
            )
            for number, disk in enumerate(vm.disk)
        ),
        run_dir=Path(config.host.run_dir),
        link_address=config.link.address,
        peer_address=config.peer.link_address,
        nbd_port=config.link.nbd_port,
        migration_port=config.link.migration_port,
        qmp_timeout_ms=t.qmp_timeout_ms,
        hang_timeout_ms=t.hang_timeout_ms,
        reconnect_s=reconnect_s(t.peer_timeout_ms),
        start_timeout_ms=t.start_timeout_ms,
        sync_timeout_ms=t.sync_timeout_ms,
        checkpoint_timeout_ms=t.checkpoint_timeout_ms,
        disk_rate_bytes=config.link.disk_rate_mib_s << 20,
        memory_rate_bytes=config.link.memory_rate_mib_s << 20,
        hardware=Hardware(
            local_time=vm.clock == "localtime",
            rng=vm.rng,
            vga=vm.vga,
        ),
        link_device=config.link.underlay if security is Security.WIREGUARD else "",
        extra_args=tuple(vm.extra_args),
    )


def qemu_user(config: Config) -> User | None:
    """Who QEMU is; None: root. ConfigError if there is no such user."""
    return user_of(config.vm.user)


def link_ends(config: Config) -> LinkEnds:
    """What IPsec is for. As the kernel prints addresses."""
    link = config.link
    return LinkEnds(
        vm=config.vm.name,
        local=str(addresses.host_address(link.address)),
        peer=str(addresses.host_address(config.peer.link_address)),
        udp_port=link.vxlan_port,
        tcp_ports=(link.nbd_port, link.migration_port),
    )


def between(config: Config) -> Between:
    """The link, for whom seals it. ConfigError as `key`."""
    return Between(link_ends(config), config.host.name, config.peer.name, key_ring(config))


def tunnel_ends(config: Config) -> TunnelEnds:
    """What WireGuard is for. As the kernel prints addresses."""
    ends, port = link_ends(config), config.link.wireguard_port
    return TunnelEnds(ends.vm, ends.local, ends.peer, port, ends.udp_port)


def through(config: Config) -> Through:
    """A tunnel for the link, and what it is made over."""
    mtu = max(nic.mtu for nic in config.vm.nic)
    return Through(tunnel_ends(config), config.link.underlay, mtu)


def carried(config: Config, security: Security) -> Config:
    """The same, with the addresses and the device by which memory and disk reach the peer."""
    if security is not Security.WIREGUARD:
        return config
    ends = tunnel_ends(config)
    here = {"address": ends.inside(ends.local), "underlay": ends.device}
    return msgspec.structs.replace(
        config,
        link=msgspec.structs.replace(config.link, **here),
        peer=msgspec.structs.replace(config.peer, link_address=ends.inside(ends.peer)),
    )


def _sealed(config: Config, security: Security) -> Ends | None:
    match security:
        case Security.NONE:
            return None
        case Security.IPSEC:
            return link_ends(config)
        case Security.WIREGUARD:
            return tunnel_ends(config).frames_only


def plane_spec(config: Config, user: User | None = None, *, security: Security) -> PlaneSpec:
    """The data plane of the VM. `user`: who QEMU is; with root, who looks at disks, it alone of
    this host may connect to the peer's QEMU. `security`: what seals the link."""
    sealed, config = _sealed(config, security), carried(config, security)
    link, sizes = config.link, config.datapath
    nics = tuple(
        PlaneNic(
            tap=nic.tap,
            bridge=nic.bridge,
            mtu=nic.mtu,
            mac="" if nic.any_mac else nic.mac,
            vlan=nic.vlan,
            trunk=tuple(nic.trunk),
            queues=nic.queues,
        )
        for nic in config.vm.nic
    )
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
        peer_address=config.peer.link_address,
        peer_ports=(link.nbd_port, link.migration_port),
        peer_callers=(0, user.uid) if user else (0,),
        link_timeout_ms=config.timing.link_timeout_ms,
        notes_last_ms=config.checkpoint.longest_wait_ms,
        heartbeat_ms=config.timing.heartbeat_ms,
        sizes=Sizes(sizes.flows, hold_slots(sizes.hold_mib, frame), sizes.datagram_buckets, frame),
        by=None if sizes.hooks == "auto" else By(sizes.hooks),
        sealed=sealed,
    )


FOLLOWING = ".next"  # behind the key file's name: the key that is to follow it


def following_key_file(config: Config) -> Path:
    """Where the key is that is to follow the present one, while it is being changed."""
    path = Path(config.peer.key_file)
    return path.with_name(path.name + FOLLOWING)


def key_files(config: Config) -> tuple[Path, Path]:
    """Of the present key, and of the one to follow it."""
    return Path(config.peer.key_file), following_key_file(config)


def key_ring(config: Config) -> KeyRing:
    """The pair's key, and the one to follow it; ConfigError as `key`.

    The one to follow is read first. It takes the place of the other by a rename: whenever that
    happens, one of the two reads finds it.
    """
    path = following_key_file(config)
    following = read_key(path) if path.exists() else None
    return KeyRing(key(config), following)


def key(config: Config) -> bytes:
    """The pair's key; ConfigError if it is missing, short or open to others."""
    return read_key(Path(config.peer.key_file))


def read_key(path: Path) -> bytes:
    """ConfigError if it is missing, short or open to others."""
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


def secondary(config: Config) -> Secondary:
    """Where the other host's QEMU listens when it is made a secondary."""
    link = config.link
    ports = {
        link.nbd_port: "link.nbd-port, writes of the disk",
        link.migration_port: "link.migration-port, checkpoints",
    }
    return Secondary(config.peer.name, config.peer.link_address, ports)
