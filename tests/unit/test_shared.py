# SPDX-License-Identifier: GPL-2.0-only
"""What all VMs of a host share is said once; each file of a VM says the rest, and wins."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf import shared
from colo_ebpf.cli import main, vms
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import _refuse_unknown, load_config
from colo_ebpf.errors import ConfigError
from colo_ebpf.metrics import asking
from tests.unit.test_import import SMALL

VM = """\
[vm]
name = "web"
nic = [{ mac = "52:54:00:12:34:56", tap = "tapweb", bridge = "br0" }]
disk = [{ path = "/web.raw", overlay-dir = "/dev/shm/web" }]
[start]
role = "primary"
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of configurations, with what is shared and one VM."""
    (tmp_path / "vms").mkdir()
    (tmp_path / "host.toml").write_text(shared.EXAMPLE)
    (tmp_path / "vms" / "web.toml").write_text(VM)
    return tmp_path


def test_a_vm_says_only_what_is_its_own(host: Path) -> None:
    found = load_config(host / "vms" / "web.toml")
    assert (found.host.name, found.peer.name, found.link.underlay) == ("a", "b", "eth1")
    assert found.host.run_dir == "/run/colo-ebpf/web"
    assert found.host.state_dir == "/var/lib/colo-ebpf/web"
    assert found.arbiter.kind == "etcd"


def test_what_a_vm_says_wins_key_by_key(host: Path) -> None:
    file = host / "vms" / "web.toml"
    file.write_text(VM + '[link]\naddress = "192.0.2.77"\n[host]\nrun-dir = "/run/x"\n')
    found = load_config(file)
    assert (found.link.address, found.link.underlay) == ("192.0.2.77", "eth1")
    assert (found.host.run_dir, found.host.name) == ("/run/x", "a")


def test_the_name_of_the_vm_may_stand_in_what_is_shared(host: Path) -> None:
    text = shared.EXAMPLE.partition("[arbiter]")[0] + '[arbiter]\npath = "/mnt/arbiter/{vm}"\n'
    (host / "host.toml").write_text(text + '[notify]\ncommand = ["/n", "{vm}", "{x}"]\n')
    found = load_config(host / "vms" / "web.toml")
    assert found.arbiter.path == "/mnt/arbiter/web"
    assert found.notify.command == ["/n", "web", "{x}"]


def test_defaults_of_all_vms_are_shared_too(host: Path) -> None:
    more = '[vm]\ncpu = "Haswell"\n[timing]\nqmp-timeout-ms = 6000\n'
    (host / "host.toml").write_text(shared.EXAMPLE + more)
    found = load_config(host / "vms" / "web.toml")
    assert (found.vm.cpu, found.vm.name, found.timing.qmp_timeout_ms) == ("Haswell", "web", 6000)


def test_a_file_elsewhere_stands_alone(host: Path) -> None:
    alone = host / "config.toml"
    alone.write_text(VM)
    with pytest.raises(ConfigError, match="missing required field `host`"):
        load_config(alone)
    (host / "host.toml").unlink()
    (host / "vms" / "web.toml").write_text(EXAMPLE)
    assert load_config(host / "vms" / "web.toml").link.address == "192.0.2.1"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "a"', "name = 7", r"host\.toml: host\.name: Expected `str`"),
        ('underlay = "eth1"', "underlay = 'e th'", r"host\.toml: link\.underlay: Expected `str`"),
        ("[peer]", "[pear]", r"host\.toml: unknown key 'pear'"),
        ("[peer]", "[peer", r"host\.toml: not valid TOML"),
        ('underlay = "eth1"', "", r"web\.toml: link: Object missing required field `underlay`"),
        ("[host]", '[vm]\nname = "x"\n[host]', r"host\.toml: vm\.name is each VM's own"),
        ("[host]", "[[vm.disk]]\n[host]", r"host\.toml: vm\.disk is each VM's own"),
        (
            "[host]",
            '[start]\nrole = "primary"\n[host]',
            r"host\.toml: start\.role is each VM's own",
        ),
        ('name = "b"', 'name = "a"', r"web\.toml with .*host\.toml: host\.name and peer\.name"),
        ("[host]", "host = 3\n[x]", "unknown key 'x'"),
    ],
)
def test_what_is_wrong_is_found_in_the_file_it_is_in(
    host: Path, old: str, new: str, words: str
) -> None:
    assert old in shared.EXAMPLE
    (host / "host.toml").write_text(shared.EXAMPLE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        load_config(host / "vms" / "web.toml")


def test_what_is_wrong_in_a_vms_own_file_is_found_there(host: Path) -> None:
    file = host / "vms" / "web.toml"
    file.write_text(VM + "[link]\naddress = 7\n")
    with pytest.raises(ConfigError, match=r"web\.toml: link\.address: Expected"):
        load_config(file)
    file.write_text("host = 3\n" + VM)
    with pytest.raises(ConfigError, match=r"web\.toml: host: Expected `object`"):
        load_config(file)


def test_a_shared_file_that_cannot_be_read_is_said(host: Path) -> None:
    (host / "host.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"host\.toml: not UTF-8 text"):
        load_config(host / "vms" / "web.toml")


_VALUES = st.recursive(
    st.integers() | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_TABLES = st.dictionaries(st.sampled_from(["vm", "host", "link", "start", "x"]), _VALUES)


@given(own=_TABLES, under=_TABLES)
def test_any_two_files_are_merged(own: dict[str, object], under: dict[str, object]) -> None:
    found = shared.merged(own, under)
    assert set(found) == set(own) | set(under)
    for key, value in own.items():
        assert not isinstance(value, dict) or all(found[key][k] == v for k, v in value.items())
    shared.wrong_key(under)
    shared.origin("link.address", own, Path("a"), shared.Shared(Path("b"), under))


# --- commands -----------------------------------------------------------------------------


def test_the_shared_file_is_no_vm(host: Path) -> None:
    assert vms.files(host) == [host / "vms" / "web.toml"]


def test_the_shared_file_is_no_vm_for_metrics(host: Path) -> None:
    (host / "db.toml").write_text(VM)
    assert asking.files_of([host]) == [host / "db.toml"]


def test_its_example_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", "example", "--host"]) == 0
    printed = capsys.readouterr().out
    assert printed == shared.EXAMPLE
    _refuse_unknown(tomllib.loads(printed), "", Path("host.toml"))


def test_an_imported_vm_leaves_to_it_what_is_shared(host: Path, tmp_path: Path) -> None:
    (tmp_path / "small.xml").write_text(SMALL)
    out = host / "vms" / "new.toml"
    assert main.main(["import-libvirt", str(tmp_path / "small.xml"), "-o", str(out)]) == 0
    assert "[host]" not in out.read_text()
    assert load_config(out).peer.name == "b"
