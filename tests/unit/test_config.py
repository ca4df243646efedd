# SPDX-License-Identifier: GPL-2.0-only
"""Every wrong configuration gets a sentence that names the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf import defaults
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import check_paths, load_config, parse_config
from colo_ebpf.config.schema import Link, Name
from colo_ebpf.control import settings
from colo_ebpf.control.arbiter.etcd import EtcdArbiter
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import ConfigError

FILE = Path("/etc/colo-ebpf/config.toml")


def test_the_example_is_in_order_and_reaches_every_part() -> None:
    parsed = parse_config(EXAMPLE, FILE)
    assert settings.who(parsed).starts
    assert settings.plane_spec(parsed, security=Security.IPSEC).nics[0].tap == "tapweb"
    assert settings.vm_spec(parsed, "kvm").memory_mib == 2048
    assert settings.deadlines(parsed.timing, parsed.checkpoint).peer_timeout_ns == 150_000_000


_SECOND_NIC = """[[vm.nic]]
mac = "52:54:00:12:34:57"
tap = "tapweb1"
bridge = "br1"
mtu = 9000

[[vm.disk]]"""


def test_a_vm_may_have_several_nics_of_any_mtu() -> None:
    parsed = parse_config(EXAMPLE.replace("[[vm.disk]]", _SECOND_NIC), FILE)
    spec = settings.plane_spec(parsed, security=Security.IPSEC)
    assert [nic.tap for nic in spec.nics] == ["tapweb", "tapweb1"]
    assert spec.mtu == 9000
    assert spec.sizes.frame_bytes > 9000 + 256
    assert spec.sizes.hold_slots * spec.sizes.frame_bytes <= parsed.datapath.hold_mib << 20
    assert len(settings.vm_spec(parsed, "tcg").nics) == 2


def _with_disks(count: int) -> str:
    more = "".join(
        f'[[vm.disk]]\npath = "/d{n}"\noverlay-dir = "/dev/shm"\n\n' for n in range(1, count)
    )
    return EXAMPLE.replace("[host]", more + "[host]")


def test_a_vm_has_one_to_eight_disks() -> None:
    parsed = parse_config(_with_disks(8), FILE)
    assert [disk.number for disk in settings.vm_spec(parsed, "tcg").disks] == list(range(8))
    with pytest.raises(ConfigError, match=r"vm\.disk: .*length <= 8"):
        parse_config(_with_disks(9), FILE)


def test_two_disks_are_two() -> None:
    twice = _with_disks(2).replace("/d1", "/var/lib/colo-ebpf/web.raw")
    with pytest.raises(ConfigError, match="two disks have the same"):
        parse_config(twice, FILE)


def test_two_nics_are_two() -> None:
    twice = _SECOND_NIC.replace("tapweb1", "tapweb")
    with pytest.raises(ConfigError, match="two NICs have the same"):
        parse_config(EXAMPLE.replace("[[vm.disk]]", twice), FILE)


def test_no_two_parts_share_a_place() -> None:
    def text(nic: int, disk: int, vga: str = "") -> str:
        said = EXAMPLE.replace("mtu = 1500", f"mtu = 1500\nslot = {nic}")
        said = said.replace('format = "raw"', f'format = "raw"\nslot = {disk}')
        return said.replace("[vm]\n", f"[vm]\n{vga}\n")

    assert parse_config(text(2, 3), FILE).vm.disk[0].slot == 3
    with pytest.raises(ConfigError, match=r"two NICs or disks have the same one: \[4, 4\]"):
        parse_config(text(4, 4), FILE)
    with pytest.raises(ConfigError, match="slot: 2 is taken; NICs and disks have 3 to 31"):
        parse_config(text(2, 4, "vga = true"), FILE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "memory-mib",
            "memory-mb",
            "unknown key 'memory-mb' in \\[vm\\]; did you mean 'memory-mib'",
        ),
        ("[peer]", "[pear]", "unknown key 'pear' in the top level; did you mean 'peer'"),
        ("bridge =", "brigde =", "in \\[vm.nic\\]; did you mean 'bridge'"),
        ("memory-mib = 2048", "memory-mib = 4", "vm.memory-mib: .*>= 16"),
        ("memory-mib = 2048", 'memory-mib = "big"', "vm.memory-mib: Expected `int`"),
        ('mac = "52:', 'mac = "53:', "is a multicast address"),
        ('mac = "52:54', 'mac = "xx', "vm.nic.*mac: "),
        ('accel = "auto" ', 'accel = "fast" ', "vm.accel: "),
        (
            'security = "auto" ',
            'security = "macsec" ',
            "link.security: 'macsec' is none of auto, ipsec, none, wireguard$",
        ),
        (
            'format = "raw"',
            'format = "raw"\nsector-bytes = 1024',
            r"vm.disk\[0\].sector-bytes: 1024 is none of 512, 4096$",
        ),
        ("mtu = 1500", "mtu = 1500\nslot = 1", "slot: 1 is taken; NICs and disks have 2 to 31"),
        ("mtu = 1500", "mtu = 1500\nslot = 32", "vm.nic.*slot: .*<= 31"),
        ('format = "raw"', 'format = "raw"\nboot-order = 1', "boot-order does not go with vm.ker"),
        ("mtu = 1500", "mtu = 1500\nvlan = 4095", "vm.nic.*vlan: .*<= 4094"),
        ("mtu = 1500", "mtu = 1500\nvlan = 7\ntrunk = [7]", "VLAN 7 is vm.nic.vlan"),
        ('format = "raw"', 'format = "raw"\nserial = "a b"', "vm.disk.*serial: "),
        ('underlay = "eth1" ', "", "link: .*`underlay`"),
        ('address = "192.0.2.1"', 'address = "peer.example"', "is not an IPv4 or IPv6 address"),
        ('"192.0.2.1"', '"fe80::1%eth1"', "link.address: 'fe80::1%eth1' is a link-local address"),
        ('"192.0.2.1"', '"2001:db8::1"', "link.address .* IPv6, peer.link-address .* IPv4: both"),
        ('"198.51.100.2"', '"::2"', "management.address .* IPv4, peer.management-address .* IPv6"),
        ('name = "b"', 'name = "a"', "host.name and peer.name are both 'a'"),
        ('role = "primary"', 'role = "boss"', "start.role: "),
        ("mtu = 1500", "mtu = 9001", "mtu: .*<= 9000"),
        ("[[vm.disk]]", "[[vm.disk", "not valid TOML"),
        ("mtu = 1500", f"mtu = {'1' * 5000}", "not valid TOML: Exceeds the limit"),
        ("mtu = 1500", f"mtu = {'[' * 5000}", "not valid TOML: nested too deep"),
        ("overlay-limit-mib = 0", "overlay-limit-mib = -1", "overlay-limit-mib: .*>= 0"),
        ("web.raw", "web,x.raw", "vm.disk.path: .* has a comma"),
        ("/dev/shm/colo-ebpf", "/dev/a,b", "vm.disk.overlay-dir: .* has a comma"),
        ('role = "primary"', 'role = "primary"\n[timing]\nlink-timeout-ms = 900', "must be below"),
        ('role = "primary"', 'role = "primary"\n[timing]\nheartbeat-ms = 90', "at most a third"),
        ("[start]", '[fence]\nwhen = "after-solo"\n\n[start]', "needs fence.command"),
        ("[start]", '[fence]\ncommand = ["f"]\n\n[start]', "'f' must be the whole path"),
        ("[start]", "[datapath]\ndatagram-buckets = 1000\n\n[start]", "power of two"),
    ],
)
def test_a_wrong_value_is_named(old: str, new: str, message: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(EXAMPLE.replace(old, new, 1), FILE)
    assert str(FILE) in str(caught.value)


def test_either_path_may_be_of_ipv6() -> None:
    link = {"192.0.2.1": "2001:db8::1", "192.0.2.2": "2001:db8:0::2"}
    management = {"198.51.100.1": "fd00::1", "198.51.100.2": "fd00::2"}
    for changes in (link, management, link | management):
        text = EXAMPLE
        for old, new in changes.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        parsed = parse_config(text, FILE)
        assert settings.plane_spec(parsed, security=Security.IPSEC).link_address == changes.get(
            "192.0.2.1", "192.0.2.1"
        )


FILE_ARBITER = '[arbiter]\npath = "/mnt/arbiter/web" '
ETCD = """[arbiter]
kind = "etcd"
endpoints = ["https://192.0.2.11:2379", "https://[2001:db8::1]:2379"]
ca-file = "/etc/ca.pem"
cert-file = "/etc/client.pem"
key-file = "/etc/client.key"
"""


def _with_arbiter(text: str) -> str:
    assert FILE_ARBITER in EXAMPLE
    return EXAMPLE.replace(FILE_ARBITER, text)


def test_the_arbiter_is_a_directory_or_an_etcd_cluster() -> None:
    assert isinstance(arbiter_of(parse_config(EXAMPLE, FILE)), FileArbiter)
    assert isinstance(arbiter_of(parse_config(_with_arbiter(ETCD), FILE)), EtcdArbiter)
    plain = '[arbiter]\nkind = "etcd"\nendpoints = ["http://127.0.0.1:2379"]\n'
    assert isinstance(arbiter_of(parse_config(_with_arbiter(plain), FILE)), EtcdArbiter)


def test_the_commented_etcd_keys_of_the_example_are_in_order() -> None:
    """As an operator would use them: `path` goes, they come."""
    kept = [line for line in EXAMPLE.splitlines() if not line.startswith('path = "/mnt/')]
    start = kept.index("[arbiter]")
    text = "\n".join(
        line.removeprefix("# ") if number > start else line for number, line in enumerate(kept)
    )
    table = parse_config(text, FILE).arbiter
    assert (table.kind, len(table.endpoints), table.prefix) == ("etcd", 3, "/colo-ebpf")
    assert table.ca_file
    assert table.cert_file
    assert table.key_file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "etcd"', 'kind = "zookeeper"', "arbiter.kind: "),
        ('kind = "etcd"', "", 'arbiter.endpoints does not go with arbiter.kind = "file"'),
        ('kind = "etcd"', 'kind = "etcd"\npath = "/x"', "arbiter.path does not go with .*etcd"),
        ('endpoints = ["', 'endpoints = []\n# ["', 'kind = "etcd" needs arbiter.endpoints'),
        ("endpoints =", "endpoint =", "did you mean 'endpoints'"),
        ("cert-file =", "# ", "cert-file and arbiter.key-file come together"),
        ("key-file =", "# ", "cert-file and arbiter.key-file come together"),
        ("ca-file =", "# ", "https:// needs arbiter.ca-file"),
        ("https://192", "http://192", "cert-file and key-file need https://"),
        ("https://192", "192", "expected https://HOST:PORT"),
        (":2379", "", "expected https://HOST:PORT"),
        (":2379", ":0x9", "192.0.2.11:0x9'"),
        (":2379", ":2379/v3", "nothing but a host and a port"),
        ("https://192", "https://user@192", "nothing but a host and a port"),
        ('kind = "etcd"', 'kind = "etcd"\nprefix = "colo/"', "arbiter.prefix: "),
    ],
)
def test_a_wrong_arbiter_is_named(old: str, new: str, message: str) -> None:
    assert old in ETCD
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(_with_arbiter(ETCD.replace(old, new, 1)), FILE)
    assert str(FILE) in str(caught.value)


def test_a_directory_needs_its_path() -> None:
    with pytest.raises(ConfigError, match=r'kind = "file" needs arbiter\.path'):
        parse_config(_with_arbiter("[arbiter]\n#"), FILE)


def test_missing_certificates_are_named_before_anything_starts(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    text = _with_arbiter(ETCD).replace("/etc/ca.pem", str(there))
    for line in ("/var/lib/colo-ebpf/vmlinuz", "/var/lib/colo-ebpf/web.raw", "/etc/colo-ebpf/key"):
        text = text.replace(line, str(there))
    with pytest.raises(ConfigError, match=r"arbiter\.cert-file: /etc/client\.pem does not exist"):
        check_paths(parse_config(text, FILE), FILE)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text, FILE)


def test_missing_files_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")
    parsed = parse_config(EXAMPLE, FILE)
    with pytest.raises(ConfigError, match=r"vm\.kernel: .* does not exist"):
        check_paths(parsed, FILE)


@pytest.mark.parametrize(
    ("mode", "data", "message"),
    [
        (0o644, b"x" * 40, "chmod 600"),
        (0o600, b"short", "holds 5 bytes"),
        (0, None, "No such file"),
    ],
)
def test_a_bad_key_is_refused(tmp_path: Path, mode: int, data: bytes | None, message: str) -> None:
    key = tmp_path / "key"
    if data is not None:
        key.write_bytes(data)
        key.chmod(mode)
    text = EXAMPLE.replace("/etc/colo-ebpf/key", str(key))
    with pytest.raises(ConfigError, match=message):
        settings.key(parse_config(text, FILE))


def _named(vm: str) -> Link:
    return parse_config(EXAMPLE.replace('name = "web"', f'name = "{vm}"'), FILE).link


def test_what_the_link_is_follows_from_the_name_of_the_vm() -> None:
    """Two VMs of a host have nothing in common though nobody picked a port."""
    one, other = _named("web1"), _named("web2")
    assert one == _named("web1")
    ports = ("vxlan_port", "nbd_port", "migration_port", "heartbeat_port", "wireguard_port")
    for name in ("device", *ports):
        assert getattr(one, name) != getattr(other, name)
    for link in (one, other):
        udp = {link.vxlan_port, link.heartbeat_port, link.wireguard_port}
        assert len(udp) == 3, "all are UDP"
        assert link.nbd_port != link.migration_port, "both are TCP"


def test_what_the_configuration_says_of_the_link_stands() -> None:
    said = EXAMPLE.replace('underlay = "eth1"', 'underlay = "eth1"\nnbd-port = 10809')
    assert parse_config(said, FILE).link.nbd_port == 10809


@given(st.from_regex(Name.__metadata__[0].pattern, fullmatch=True))
def test_what_is_derived_is_allowed(vm: str) -> None:
    device = defaults.device(vm)
    assert len(device) <= 15
    ports = (defaults.vxlan_port, defaults.heartbeat_port, defaults.nbd_port)
    assert all(20_000 <= port(vm) < 28_000 for port in ports)
    assert 28_000 <= defaults.wireguard_port(vm) < 32_000


@pytest.mark.parametrize("key", ["append", "initrd"])
def test_words_for_a_kernel_need_one(key: str) -> None:
    text = EXAMPLE.replace('append = "root=/dev/vda1"', f'{key} = "x"')
    parse_config(text, FILE)
    text = text.replace('kernel = "/var/lib/colo-ebpf/vmlinuz"', "")
    with pytest.raises(ConfigError, match=rf"vm\.{key} goes with vm\.kernel"):
        parse_config(text, FILE)
