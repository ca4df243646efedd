# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf import-libvirt NAME` with the real virsh, at libvirt's test driver.

The driver runs inside virsh: no daemon, and domains from a file. What it prints is libvirt's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colo_ebpf.cli.exits import Exit
from colo_ebpf.config.reading import load_config
from tests.capabilities import require
from tests.unit.test_import import VMS

_TOOLS = ("virsh", "qemu-img")


class Host:
    """A directory with images, a node of libvirt's test driver, and the commands of a host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o711)
        self.tools, self.images = root / "bin", root / "images"
        for one in (self.tools, self.images):
            one.mkdir()
        for tool in _TOOLS:
            self.tools.joinpath(tool).symlink_to(str(shutil.which(tool)))
        (root / "key").write_bytes(b"k" * 32)
        (root / "key").chmod(0o600)
        for name in ("OVMF_CODE_4M.fd", "desk_VARS.fd", "shop.raw", "data.raw"):
            (self.images / name).write_bytes(bytes(1 << 20))
        self.run("qemu-img", "create", "-q", "-f", "qcow2", f"{self.images}/desk.qcow2", "1M")
        node = (VMS / "node.xml").read_text().replace("/images/", f"{self.images}/")
        (root / "node.xml").write_text(node)

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """With these commands, and libvirt at the node, unless `more` says another place."""
        environment = {
            "PATH": str(self.tools),
            "LIBVIRT_DEFAULT_URI": f"test://{self.root}/node.xml",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            **more,
        }
        environment = {name: value for name, value in environment.items() if value}
        command = shutil.which(words[0], path=str(self.tools)) or words[0]
        return subprocess.run(
            [command, *words[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ours(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`colo-ebpf`."""
        return self.run(sys.executable, "-m", "colo_ebpf.cli.main", *words, **more)

    def fill_in(self, file: Path) -> None:
        """What the operator has to: files of this host in place of the example's."""
        text = file.read_text().replace("/etc/colo-ebpf/key", f"{self.root}/key")
        for theirs in ("/var/lib/colo-ebpf", "/dev/shm/colo-ebpf"):
            text = text.replace(theirs, str(self.root))
        file.write_text(text.replace('"colo-qemu"', '"root"'))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    require("virsh", "qemu-nbd")
    return Host(tmp_path)


def test_a_domain_becomes_a_configuration_that_passes_the_check(host: Host) -> None:
    file = host.root / "shop.toml"
    done = host.ours("import-libvirt", "shop", "--output", str(file))
    assert (done.returncode, done.stdout) == (Exit.DONE, "")
    assert "NOTE channel org.qemu.guest_agent.0: " in done.stderr
    vm = load_config(file).vm
    assert (vm.name, vm.memory_mib, vm.cpus, vm.cpu, vm.machine, vm.rng) == (
        *("shop", 512, 2, "Haswell", "pc-i440fx-7.2"),
        True,
    )
    assert (vm.nic[0].mac, vm.nic[0].bridge) == ("52:54:00:00:00:01", "br-shop")
    assert vm.uuid == "0a1b2c3d-0001-4001-8001-000000000001"
    host.fill_in(file)
    checked = host.ours("config", "check", str(file))
    assert (checked.returncode, checked.stderr) == (Exit.DONE, "")


def test_a_desktop_on_q35_with_uefi_is_told_what_it_loses(host: Host) -> None:
    """There is no QEMU on this host, so its release is not known to be one that can."""
    file = host.root / "desk.toml"
    done = host.ours("import-libvirt", "desk", "--output", str(file))
    assert done.returncode == Exit.FAILED
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("CANNOT ")] == [
        line for line in lines if line.startswith("CANNOT machine pc-q35-7.2: ")
    ]
    for said in (
        "NOTE disk sdb: was on sata and is virtio-blk now",
        "NOTE cdrom sda: is empty, and left out",
        "NOTE network card 52:54:00:00:00:02: was in libvirt's network 'default'",
        "NOTE network card 52:54:00:00:00:02: was e1000e and is virtio-net now",
        "NOTE graphics vnc: ",
    ):
        assert [line for line in lines if line.startswith(said)], said
    copy = re.search(r"NOTE UEFI variables: `cp (\S+) (\S+)`", done.stderr)
    assert copy and copy[1] == f"{host.images}/desk_VARS.fd"
    shutil.copy(copy[1], host.root / Path(copy[2]).name)
    host.fill_in(file)
    checked = host.ours("config", "check", str(file))
    assert (checked.returncode, checked.stderr) == (Exit.DONE, "")
    disks = [(disk.path, disk.format) for disk in load_config(file).vm.disk]
    assert disks == [(f"{host.images}/desk.qcow2", "qcow2"), (f"{host.images}/data.raw", "raw")]


def test_what_virsh_wrote_into_a_file_is_the_same(host: Host) -> None:
    written = host.root / "shop.xml"
    written.write_text(host.run("virsh", "dumpxml", "--inactive", "shop").stdout)
    by_file, by_name = (host.ours("import-libvirt", one) for one in (str(written), "shop"))
    assert by_file.stdout == by_name.stdout
    assert by_file.stdout.startswith("# shop, imported; ")


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("shopp", {}, "virsh failed: failed to get domain 'shopp'; `virsh list --all` shows what"),
        ("shop", {"LIBVIRT_DEFAULT_URI": "test:///none"}, "failed to connect to the hypervisor: "),
        ("shop", {"LIBVIRT_DEFAULT_URI": ""}, "`virsh --connect qemu:///system list --all` shows"),
        ("shop", {"PATH": "/none"}, "virsh is not installed here: name a file with its output"),
    ],
    ids=["no such name", "no such place", "no place", "no virsh"],
)
def test_what_cannot_be_had_is_one_sentence_and_the_remedy(
    host: Host, name: str, more: dict[str, str], told: str
) -> None:
    out = host.root / "out.toml"
    done = host.ours("import-libvirt", name, "--output", str(out), **more)
    assert done.returncode == Exit.REFUSED
    assert done.stderr.startswith(f"colo-ebpf: {name}: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_a_name_like_an_option_is_a_name_whatever_the_language(host: Host) -> None:
    done = host.ours("import-libvirt", "--", "--all", LANG="de_DE.UTF-8")
    assert done.returncode == Exit.REFUSED
    assert "--all: virsh failed: failed to get domain '--all'; " in done.stderr
