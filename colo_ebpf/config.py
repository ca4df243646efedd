# SPDX-License-Identifier: GPL-2.0-only
"""The configuration file: TOML, one file for one VM on one host, checked before anything starts.

Keys are in kebab-case. An unknown key is refused with the nearest known one; a value out of range
names its place and what is allowed. Times are in milliseconds.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from colo_ebpf.errors import ConfigError

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Device = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")]
Mac = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Ms = Annotated[int, Meta(ge=1, le=3_600_000)]
CACHE_DIR = "/var/cache/colo-ebpf"
Count = Annotated[int, Meta(ge=16, le=1 << 20)]


class Nic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One network card of the guest."""

    mac: Mac
    tap: Device
    bridge: Device
    mtu: Annotated[int, Meta(ge=576, le=9000)] = 1500


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One disk of the guest. `overlay_limit_mib` 0: a share of what is free in `overlay_dir`."""

    path: str
    overlay_dir: str
    format: Annotated[str, Meta(pattern="^(raw|qcow2)$")] = "raw"
    overlay_limit_mib: Annotated[int, Meta(ge=0, le=1 << 22)] = 0


class VmTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[vm]``: the guest, the same on both hosts but for paths."""

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
    qemu: str = "qemu-system-x86_64"
    extra_args: list[str] = []
    preload: str = ""


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[host]``: this host. `cache_dir` is for all VMs of the host: what was compiled."""

    name: Name
    run_dir: str
    state_dir: str
    bpffs: str = "/sys/fs/bpf"
    cache_dir: str = CACHE_DIR


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[peer]``: the other host."""

    name: Name
    link_address: str
    management_address: str
    key_file: str


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[link]``: the way between the hosts that carries frames, memory and disk."""

    address: str
    underlay: Device
    device: Device = "colo-link"
    vxlan_port: Port = 4789
    nbd_port: Port = 10809
    migration_port: Port = 4444
    heartbeat_port: Port = 7460


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
    """``[datapath]``: capacities; the number of buckets is a power of two."""

    flows: Count = 65536
    hold_mib: Annotated[int, Meta(ge=1, le=4096)] = 128
    datagram_buckets: Count = 2048


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """``[start]``: what this host is when the VM never ran. Later the record knows."""

    role: Annotated[str, Meta(pattern="^(primary|secondary)$")]
    realtime_priority: Annotated[int, Meta(ge=0, le=99)] = 10


class FenceTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """``[fence]``: the command that turns the other host off, and when it is run."""

    command: list[str] = []
    when: Annotated[str, Meta(pattern="^(off|before-solo|after-solo)$")] = "off"
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
    watchdog: WatchdogTable = WatchdogTable()


def _known_keys(kind: Any = Config, path: str = "") -> dict[str, list[str]]:
    """Keys by table path (``vm.nic`` for an array of tables)."""
    found: dict[str, list[str]] = {}
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    found[path] = [f.encode_name for f in info.fields]
    for field in info.fields:
        inner = field.type
        if isinstance(inner, msgspec.inspect.ListType):
            inner = inner.item_type
        if isinstance(inner, msgspec.inspect.StructType):
            found |= _known_keys(inner.cls, f"{path}.{field.encode_name}".lstrip("."))
    return found


_KEYS = _known_keys()


def _refuse_unknown(table: dict[str, Any], path: str, file: Path) -> None:
    known = _KEYS[path]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            where = f"[{path}]" if path else "the top level"
            raise ConfigError(f"{file}: unknown key {key!r} in {where}{hint}")
        inner = f"{path}.{key}".lstrip(".")
        if inner not in _KEYS:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                _refuse_unknown(part, inner, file)


def _cross_check(config: Config, file: Path) -> None:
    timing, sizes = config.timing, config.datapath
    _check_checkpoint(config, file)
    _check_arbiter(config.arbiter, file)
    _check_fence(config.fence, file)
    if timing.link_timeout_ms >= timing.peer_timeout_ms:
        raise ConfigError(
            f"{file}: timing.link-timeout-ms ({timing.link_timeout_ms}) must be below "
            f"timing.peer-timeout-ms ({timing.peer_timeout_ms}): a cut-off primary has to fall "
            f"silent before its peer takes over"
        )
    if timing.heartbeat_ms * 3 > timing.link_timeout_ms:
        raise ConfigError(
            f"{file}: timing.heartbeat-ms ({timing.heartbeat_ms}) must be at most a third of "
            f"timing.link-timeout-ms ({timing.link_timeout_ms})"
        )
    buckets = sizes.datagram_buckets
    if buckets & (buckets - 1):
        raise ConfigError(f"{file}: datapath.datagram-buckets ({buckets}) must be a power of two")
    if config.host.name == config.peer.name:
        raise ConfigError(f"{file}: host.name and peer.name are both {config.host.name!r}")
    for name, address in (
        ("link.address", config.link.address),
        ("management.address", config.management.address),
        ("peer.link-address", config.peer.link_address),
        ("peer.management-address", config.peer.management_address),
    ):
        try:
            ipaddress.IPv4Address(address)
        except ValueError as e:
            raise ConfigError(f"{file}: {name}: {address!r} is not an IPv4 address") from e
    for nic in config.vm.nic:
        if int(nic.mac[:2], 16) & 1:
            raise ConfigError(f"{file}: vm.nic.mac: {nic.mac} is a multicast address")
    for what in ("mac", "tap"):
        values = [str(getattr(nic, what)).lower() for nic in config.vm.nic]
        if len(set(values)) < len(values):
            raise ConfigError(f"{file}: vm.nic.{what}: two NICs have the same one: {values}")
    _check_disks(config, file)


def _check_checkpoint(config: Config, file: Path) -> None:
    table, least_ms = config.checkpoint, config.timing.compare_timeout_ms
    if table.period_ms and table.mode != "periodic":
        raise ConfigError(
            f'{file}: checkpoint.period-ms goes with checkpoint.mode = "periodic", '
            f'not with "{table.mode}"'
        )
    if table.longest_wait_ms < least_ms:
        raise ConfigError(
            f"{file}: checkpoint.longest-wait-ms ({table.longest_wait_ms}) must be at least "
            f"timing.compare-timeout-ms ({least_ms})"
        )


def _check_disks(config: Config, file: Path) -> None:
    paths = [str(Path(disk.path).absolute()) for disk in config.vm.disk]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{file}: vm.disk.path: two disks have the same one: {paths}")
    for name in ("path", "overlay_dir"):
        for disk in config.vm.disk:
            if "," in getattr(disk, name):  # QEMU takes it for the end of the name
                key = name.replace("_", "-")
                raise ConfigError(f"{file}: vm.disk.{key}: {getattr(disk, name)!r} has a comma")


def _check_fence(table: FenceTable, file: Path) -> None:
    if table.when != "off" and not table.command:
        raise ConfigError(f'{file}: fence.when = "{table.when}" needs fence.command')
    if table.command and not Path(table.command[0]).is_absolute():
        raise ConfigError(
            f"{file}: fence.command: {table.command[0]!r} must be the whole path of a program"
        )


def _check_arbiter(table: ArbiterTable, file: Path) -> None:
    """Each kind has its own keys: one of the other kind was meant for something else."""
    tls = {"ca-file": table.ca_file, "cert-file": table.cert_file, "key-file": table.key_file}
    given = {"path": table.path, "endpoints": table.endpoints, **tls}
    needed = {"file": "path", "etcd": "endpoints"}[table.kind]
    strange = [k for k, v in given.items() if v and (k == "path") != (table.kind == "file")]
    for key in strange:
        raise ConfigError(f'{file}: arbiter.{key} does not go with arbiter.kind = "{table.kind}"')
    if not given[needed]:
        raise ConfigError(f'{file}: arbiter.kind = "{table.kind}" needs arbiter.{needed}')
    if bool(table.cert_file) != bool(table.key_file):
        raise ConfigError(f"{file}: arbiter.cert-file and arbiter.key-file come together")
    for endpoint in table.endpoints:
        wrong = _endpoint_error(endpoint, table)
        if wrong:
            raise ConfigError(f"{file}: arbiter.endpoints: {endpoint!r}: {wrong}")


def _endpoint_error(endpoint: str, table: ArbiterTable) -> str:
    """What is wrong with it ("" if nothing is)."""
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as e:
        return str(e)
    if url.scheme not in ("http", "https") or not host or port is None:
        return "expected https://HOST:PORT (or http://, in a lab)"
    if url.path.strip("/") or url.query or url.fragment or "@" in url.netloc:
        return "nothing but a host and a port may be named"
    if url.scheme == "http" and (table.ca_file or table.cert_file):
        return "arbiter.ca-file, cert-file and key-file need https://"
    if url.scheme == "https" and not table.ca_file:
        return "https:// needs arbiter.ca-file, the CA that signed the servers' certificates"
    return ""


def parse(text: str, file: Path) -> Config:
    """The configuration in `text`; ConfigError says file, place, value and remedy."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{file}: not valid TOML: {e}") from e
    _refuse_unknown(raw, "", file)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{file}: {_readable(str(e))}") from e
    _cross_check(config, file)
    return config


def _readable(message: str) -> str:
    """msgspec's message with the place first: ``vm.memory-mib: Expected ...``."""
    match = re.fullmatch(r"(?P<what>.*?) - at `\$\.?(?P<where>.*)`", message)
    return f"{match['where']}: {match['what']}" if match else message


def load(file: Path) -> Config:
    """Read and check a configuration file."""
    try:
        text = file.read_text()
    except OSError as e:
        raise ConfigError(f"{file}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: not UTF-8 text") from e
    return parse(text, file)


def check_paths(config: Config, file: Path) -> None:
    """What the file names has to exist before the daemon starts."""
    for name, path in (
        ("vm.kernel", config.vm.kernel),
        ("vm.initrd", config.vm.initrd),
        ("vm.preload", config.vm.preload),
        *(("vm.disk.path", disk.path) for disk in config.vm.disk),
        ("peer.key-file", config.peer.key_file),
        ("arbiter.ca-file", config.arbiter.ca_file),
        ("arbiter.cert-file", config.arbiter.cert_file),
        ("arbiter.key-file", config.arbiter.key_file),
        ("fence.command", config.fence.command[0] if config.fence.command else ""),
        ("watchdog.device", config.watchdog.device),
    ):
        if path and not Path(path).exists():
            raise ConfigError(f"{file}: {name}: {path} does not exist")


EXAMPLE = """\
# One VM on this host. The same file with the host's own names and addresses goes to the other.

[vm]
name = "web"
memory-mib = 2048
cpus = 1
accel = "auto"                        # auto boots once to find out whether KVM works
kernel = "/var/lib/colo-ebpf/vmlinuz"
append = "root=/dev/vda1"

[[vm.nic]]
mac = "52:54:00:12:34:56"
tap = "tapweb"
bridge = "br0"                        # where the clients are
mtu = 1500

[[vm.disk]]
path = "/var/lib/colo-ebpf/web.raw"   # the same size on both hosts
overlay-dir = "/dev/shm/colo-ebpf"    # the secondary's writes since the last checkpoint
overlay-limit-mib = 0                 # a checkpoint at half of it; 0: a quarter of what is free
format = "raw"

[host]
name = "a"
run-dir = "/run/colo-ebpf/web"
state-dir = "/var/lib/colo-ebpf/web"

[peer]
name = "b"
link-address = "192.0.2.2"
management-address = "198.51.100.2"
key-file = "/etc/colo-ebpf/key"       # 16 bytes or more, the same on both hosts, mode 0600

[link]
address = "192.0.2.1"
underlay = "eth1"                     # its MTU: the guest's plus 50 or more

[management]
address = "198.51.100.1"

[arbiter]
path = "/mnt/arbiter/web"             # reached by both hosts; NFS: hard,noac,lookupcache=none
# kind = "etcd"                       # instead of a directory, an etcd cluster:
# endpoints = ["https://192.0.2.11:2379", "https://192.0.2.12:2379", "https://192.0.2.13:2379"]
# prefix = "/colo-ebpf"               # the record is below it: /colo-ebpf/web/record
# ca-file = "/etc/colo-ebpf/etcd-ca.pem"
# cert-file = "/etc/colo-ebpf/etcd-client.pem"
# key-file = "/etc/colo-ebpf/etcd-client.key"

[checkpoint]
mode = "auto"                         # or "compare", or "periodic"
max-pause-ms = 0                      # epochs are made shorter for it; 0: they are not

[start]
role = "primary"                      # the one that starts the VM for the first time

# [fence]                             # turns the other host off when it is taken over unasked
# command = ["/etc/colo-ebpf/fence"]  # no shell; exit 0: it is certainly off
# when = "before-solo"                # nothing leaves before it is off; or "after-solo", or "off"
# timeout-ms = 10000                  # then the command is killed, and has failed

# [watchdog]                          # resets this host if the daemon hangs while the VM serves
# device = "/dev/watchdog"
# timeout-s = 30                      # longer than a restart of the daemon takes
"""
