# SPDX-License-Identifier: GPL-2.0-only
"""The packages that are in `$COLO_DEB`: their form, and their life in a fresh Debian."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import colo_ebpf
from tests.capabilities import ROOT, require
from tests.packages import fresh
from tests.packages.fresh import Fresh

BASE, LAB = "colo-ebpf", "colo-ebpf-lab"
CONFIG = Path("etc/colo-ebpf/vms/web.toml")


@pytest.fixture(scope="module")
def packages() -> dict[str, Path]:
    """By name."""
    where = os.environ.get("COLO_DEB")
    if not where:
        pytest.skip("takes minutes and Debian's mirror: run `make deb-test`")
    return {path.name.split("_")[0]: path for path in Path(where).absolute().glob("*.deb")}


@pytest.fixture(scope="module")
def debian(packages: dict[str, Path]) -> Iterator[Fresh]:
    """With all that the packages depend on, and not the packages."""
    require("root", "debootstrap")
    root = Path(tempfile.mkdtemp(prefix="colo-test-deb-"))
    try:
        made = fresh.debian(root, fresh.release_of(packages[BASE]))
        made.apt("install", *sorted(_wanted(packages[BASE]) | _wanted(packages[LAB]) - {BASE}))
        for path in packages.values():
            (root / "root" / path.name).write_bytes(path.read_bytes())
        yield made
    finally:
        fresh.remove(root)


def _field(package: Path, name: str) -> str:
    words = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _wanted(package: Path) -> set[str]:
    """Names of what it depends on."""
    return {one.split()[0] for one in _field(package, "Depends").split(",")}


def _contents(package: Path) -> list[str]:
    words = ["dpkg-deb", "--contents", str(package)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def _paths(packages: dict[str, Path]) -> list[str]:
    return [f"/root/{path.name}" for path in packages.values()]


def test_lintian_finds_no_error(packages: dict[str, Path]) -> None:
    require("lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error", *map(str, packages.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_hypervisor_gets_no_compiler_and_no_server(packages: dict[str, Path]) -> None:
    assert not _wanted(packages[BASE]) & {"gcc", "nginx-light", "etcd-server", "libc6-dev"}
    text = "\n".join(_contents(packages[BASE]))
    assert "colo_ebpf/lab" not in text
    assert "colo_ebpf/bench" not in text


def test_nothing_tells_of_the_machine_that_built_it(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    for path in packages.values():
        subprocess.run(["dpkg-deb", "--extract", str(path), str(tmp_path)], check=True)
    built = str(ROOT).encode()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in told if built in path.read_bytes()] == []
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_life(debian: Fresh, packages: dict[str, Path]) -> None:
    """Install, use, install again, remove, purge. What comes next needs what came before."""
    before = debian.files()
    debian.apt("install", f"/root/{packages[BASE].name}")
    _use(debian)
    assert "is in the package colo-ebpf-lab" in debian.run("colo-ebpf", "lab", check=False).stderr

    debian.apt("install", *_paths(packages))
    assert "build a lab and a pair in it" in debian.run("colo-ebpf", "lab", "--help").stdout
    debian.apt("install", "--reinstall", *_paths(packages))
    _use(debian)

    debian.run("sh", "-c", f"colo-ebpf config example > /{CONFIG}")
    assert "web" in debian.run("colo-ebpf", "list").stdout
    debian.run("mkdir", "-p", "/var/lib/colo-ebpf/web", "/var/cache/colo-ebpf")
    debian.run("touch", "/var/lib/colo-ebpf/web/generation", "/var/cache/colo-ebpf/1.o")
    debian.run("touch", "/var/lib/colo-ebpf/web.raw")
    debian.apt("remove", BASE, LAB)
    assert (debian.root / CONFIG).exists()
    assert not (debian.root / "usr/lib/colo-ebpf").exists()
    assert not (debian.root / "usr/bin/colo-ebpf").exists()

    debian.apt("purge", BASE, LAB)
    assert sorted(debian.files() - before) == ["var/lib/colo-ebpf", "var/lib/colo-ebpf/web.raw"]
    assert sorted(before - debian.files()) == []


def _use(debian: Fresh) -> None:
    version = debian.run("colo-ebpf", "--version").stdout
    assert version == f"colo-ebpf {colo_ebpf.__version__}\n"
    assert debian.run("colo-ebpf", "config", "example").stdout.startswith("# One VM on this host")
    debian.run("bash", "-n", "/usr/share/bash-completion/completions/colo-ebpf")


def test_what_it_depends_on_is_there(debian: Fresh, packages: dict[str, Path]) -> None:
    """And what the kernel lacks is told, not stumbled over."""
    debian.apt("install", f"/root/{packages[BASE].name}")
    found = debian.run("colo-ebpf", "doctor", check=False)
    assert found.stderr == ""
    looked = {
        line[7:].split("  ")[0].strip(): line[:5].strip() for line in found.stdout.splitlines()
    }
    here = ("permissions", "bcc", "libbpf", "libnbd", "qemu", "qemu-img")
    assert {name: looked[name] for name in here} == dict.fromkeys(here, "ok"), found.stdout
