# SPDX-License-Identifier: GPL-2.0-only
"""Every wrong configuration gets a sentence that names the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf import config
from colo_ebpf.control import settings
from colo_ebpf.control.arbiter_etcd import EtcdArbiter
from colo_ebpf.control.arbiter_file import FileArbiter
from colo_ebpf.control.arbiters import arbiter_of
from colo_ebpf.errors import ConfigError

FILE = Path("/etc/colo-ebpf/config.toml")


def test_the_example_is_in_order_and_reaches_every_part() -> None:
    parsed = config.parse(config.EXAMPLE, FILE)
    assert settings.who(parsed).starts
    assert settings.plane_spec(parsed).nics[0].tap == "tapweb"
    assert settings.vm_spec(parsed, "kvm").memory_mib == 2048
    assert settings.timing(parsed).peer_timeout_ns == 150_000_000


_SECOND_NIC = """[[vm.nic]]
mac = "52:54:00:12:34:57"
tap = "tapweb1"
bridge = "br1"
mtu = 9000

[[vm.disk]]"""


def test_a_vm_may_have_several_nics_of_any_mtu() -> None:
    parsed = config.parse(config.EXAMPLE.replace("[[vm.disk]]", _SECOND_NIC), FILE)
    spec = settings.plane_spec(parsed)
    assert [nic.tap for nic in spec.nics] == ["tapweb", "tapweb1"]
    assert spec.mtu == 9000
    assert spec.sizes.frame_bytes > 9000 + 256
    assert spec.sizes.hold_slots * spec.sizes.frame_bytes <= parsed.datapath.hold_mib << 20
    assert len(settings.vm_spec(parsed, "tcg").nics) == 2


def _with_disks(count: int) -> str:
    more = "".join(
        f'[[vm.disk]]\npath = "/d{n}"\noverlay-dir = "/dev/shm"\n\n' for n in range(1, count)
    )
    return config.EXAMPLE.replace("[host]", more + "[host]")


def test_a_vm_has_one_to_eight_disks() -> None:
    parsed = config.parse(_with_disks(8), FILE)
    assert [disk.number for disk in settings.vm_spec(parsed, "tcg").disks] == list(range(8))
    with pytest.raises(ConfigError, match=r"vm\.disk: .*length <= 8"):
        config.parse(_with_disks(9), FILE)


def test_two_disks_are_two() -> None:
    twice = _with_disks(2).replace("/d1", "/var/lib/colo-ebpf/web.raw")
    with pytest.raises(ConfigError, match="two disks have the same"):
        config.parse(twice, FILE)


def test_two_nics_are_two() -> None:
    twice = _SECOND_NIC.replace("tapweb1", "tapweb")
    with pytest.raises(ConfigError, match="two NICs have the same"):
        config.parse(config.EXAMPLE.replace("[[vm.disk]]", twice), FILE)


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
        ('underlay = "eth1" ', "", "link: .*`underlay`"),
        ('address = "192.0.2.1"', 'address = "peer.example"', "is not an IPv4 address"),
        ('name = "b"', 'name = "a"', "host.name and peer.name are both 'a'"),
        ('role = "primary"', 'role = "boss"', "start.role: "),
        ("mtu = 1500", "mtu = 9001", "mtu: .*<= 9000"),
        ("[[vm.disk]]", "[[vm.disk", "not valid TOML"),
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
    assert old in config.EXAMPLE
    with pytest.raises(ConfigError, match=message) as caught:
        config.parse(config.EXAMPLE.replace(old, new, 1), FILE)
    assert str(FILE) in str(caught.value)


FILE_ARBITER = '[arbiter]\npath = "/mnt/arbiter/web" '
ETCD = """[arbiter]
kind = "etcd"
endpoints = ["https://192.0.2.11:2379", "https://[2001:db8::1]:2379"]
ca-file = "/etc/ca.pem"
cert-file = "/etc/client.pem"
key-file = "/etc/client.key"
"""


def _with_arbiter(text: str) -> str:
    assert FILE_ARBITER in config.EXAMPLE
    return config.EXAMPLE.replace(FILE_ARBITER, text)


def test_the_arbiter_is_a_directory_or_an_etcd_cluster() -> None:
    assert isinstance(arbiter_of(config.parse(config.EXAMPLE, FILE)), FileArbiter)
    assert isinstance(arbiter_of(config.parse(_with_arbiter(ETCD), FILE)), EtcdArbiter)
    plain = '[arbiter]\nkind = "etcd"\nendpoints = ["http://127.0.0.1:2379"]\n'
    assert isinstance(arbiter_of(config.parse(_with_arbiter(plain), FILE)), EtcdArbiter)


def test_the_commented_etcd_keys_of_the_example_are_in_order() -> None:
    """As an operator would use them: `path` goes, they come."""
    kept = [line for line in config.EXAMPLE.splitlines() if not line.startswith('path = "/mnt/')]
    start = kept.index("[arbiter]")
    text = "\n".join(
        line.removeprefix("# ") if number > start else line for number, line in enumerate(kept)
    )
    table = config.parse(text, FILE).arbiter
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
        config.parse(_with_arbiter(ETCD.replace(old, new, 1)), FILE)
    assert str(FILE) in str(caught.value)


def test_a_directory_needs_its_path() -> None:
    with pytest.raises(ConfigError, match=r'kind = "file" needs arbiter\.path'):
        config.parse(_with_arbiter("[arbiter]\n#"), FILE)


def test_missing_certificates_are_named_before_anything_starts(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    text = _with_arbiter(ETCD).replace("/etc/ca.pem", str(there))
    for line in ("/var/lib/colo-ebpf/vmlinuz", "/var/lib/colo-ebpf/web.raw", "/etc/colo-ebpf/key"):
        text = text.replace(line, str(there))
    with pytest.raises(ConfigError, match=r"arbiter\.cert-file: /etc/client\.pem does not exist"):
        config.check_paths(config.parse(text, FILE), FILE)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        config.parse(text, FILE)


def test_missing_files_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml")
    parsed = config.parse(config.EXAMPLE, FILE)
    with pytest.raises(ConfigError, match=r"vm\.kernel: .* does not exist"):
        config.check_paths(parsed, FILE)


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
    text = config.EXAMPLE.replace("/etc/colo-ebpf/key", str(key))
    with pytest.raises(ConfigError, match=message):
        settings.key(config.parse(text, FILE))
