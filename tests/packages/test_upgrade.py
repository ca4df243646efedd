# SPDX-License-Identifier: GPL-2.0-only
"""dpkg puts the files of a newer package under the daemons of a protected pair, which goes on."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import colo_ebpf
from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.capabilities import ROOT, require
from tests.lab import clean, cli, end_daemon
from tests.lab.test_upgrade import _Ledger, _primary

BASE, NEWER = "colo-ebpf", "99.0"
_HOME = "usr/lib/colo-ebpf"
# The root of the packages is a directory here: no script of theirs may touch this host.
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")


class Root:
    """A directory that dpkg unpacks packages in."""

    def __init__(self, at: Path, package: Path) -> None:
        self.at, self._package = at, package
        (at / "var/lib/dpkg/updates").mkdir(parents=True)
        (at / "var/lib/dpkg/info").mkdir()
        (at / "var/lib/dpkg/status").touch()

    def unpack(self, version: str) -> None:
        """The package, as this version: over what is there, file by file."""
        tree = self.at.parent / f"tree-{version}"
        self._run("dpkg-deb", "--raw-extract", str(self._package), str(tree))
        for name in _SCRIPTS:
            (tree / "DEBIAN" / name).unlink(missing_ok=True)
        self._says(tree / "DEBIAN/control", r"^Version: .*$", f"Version: {version}")
        made = tree / _HOME / "colo_ebpf/__init__.py"
        self._says(made, r'^__version__ = ".*"$', f'__version__ = "{version}"')
        file = self.at.parent / f"{version}.deb"
        self._run("dpkg-deb", "-Znone", "--build", str(tree), str(file))
        options = ["--force-depends", "--force-not-root", "--force-bad-path", "--log=/dev/null"]
        where = [f"--instdir={self.at}", f"--admindir={self.at}/var/lib/dpkg"]
        self._run("dpkg", *where, *options, "--unpack", str(file))
        shutil.rmtree(tree)

    @staticmethod
    def _says(file: Path, pattern: str, text: str) -> None:
        said, count = re.subn(pattern, text, file.read_text(), flags=re.MULTILINE)
        assert count == 1
        file.write_text(said)

    @staticmethod
    def _run(*words: str) -> None:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr

    def version(self) -> str:
        """What a command of the package says now."""
        done = subprocess.run(
            [sys.executable, "-m", "colo_ebpf.cli.main", "--version"],
            env={**os.environ, "PYTHONPATH": str(self.at / _HOME)},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.split()[1]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """With the package in it."""
    where = os.environ.get("COLO_DEB")
    if not where:
        pytest.skip("takes minutes and Debian's mirror: run `make deb-test`")
    (package,) = Path(where).absolute().glob(f"{BASE}_*.deb")
    made = Root(tmp_path / "root", package)
    made.unpack(colo_ebpf.__version__)
    assert made.version() == colo_ebpf.__version__
    (made.at / _HOME / "build").symlink_to(ROOT / "build")  # for its kernel headers
    return made


@pytest.fixture
def pair(root: Root) -> Iterator[Lab]:
    """A protected pair whose daemons run the code of the package."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotpackage"))
    for host in HOSTS:
        lab.environment[host] = {"PYTHONPATH": str(root.at / _HOME)}
    try:
        lab.up(choose(Wanted()))
        yield lab
    finally:
        lab.down()


async def _upgrade(lab: Lab, root: Root) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = _Ledger(Lines(await client.connect(LEDGER)))
    task = asyncio.create_task(ledger.run())
    primary = _primary(lab)
    generation = lab.ask(primary)["record"]["generation"]

    await asyncio.to_thread(root.unpack, NEWER)
    assert root.version() == NEWER
    await ledger.goes_on(task)
    for host in HOSTS:  # daemons of before, with the files of now
        assert lab.ask(host)["protected"]
    done = await asyncio.to_thread(cli, lab, primary, "checkpoint")
    assert done.returncode == 0, done.stderr
    await ledger.goes_on(task)
    for host in (lab.places[primary].other.host, primary):
        await asyncio.to_thread(end_daemon, lab, host)
        lab.start_daemon(lab.places[host])
        await asyncio.to_thread(lab.wait_protected)
        await ledger.goes_on(task)
    assert lab.ask(primary)["record"]["generation"] == generation, "somebody went solo"

    await asyncio.to_thread(faults.kill, lab, primary, "host")
    await ledger.goes_on(task)
    ledger.stop.set()
    await task
    ledger.lines.close()


def test_a_protected_pair_is_upgraded_one_daemon_after_the_other(pair: Lab, root: Root) -> None:
    asyncio.run(_upgrade(pair, root))
