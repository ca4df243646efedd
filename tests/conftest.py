# SPDX-License-Identifier: GPL-2.0-only
"""What may run side by side; and nothing that the tests made may be left when they end.

`make test` gives each file to one of two workers (pytest-xdist). Labs have names of their own, so
that files do not meet.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import qemu_choice

_TOGETHER = {  # by directory: they use fixed ports, or share rigs
    "qemu": "qemu",
    "bpf": "rigs",
    "model": "rigs",
}
_BEFORE = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """The QEMU that was asked for; workers inherit it."""
    program = os.environ.pop(qemu_choice.VARIABLE, "")
    if not program:
        return
    try:
        directory, path = qemu_choice.put_first(program, os.environ["PATH"])
    except qemu_choice.ChoiceError as e:
        raise pytest.UsageError(str(e)) from e
    config.add_cleanup(directory.cleanup)
    os.environ["PATH"] = path


def pytest_report_header() -> str:
    """With which QEMU."""
    try:
        return qemu_choice.version_of(qemu_choice.NAME)
    except qemu_choice.ChoiceError:
        return "no QEMU"


def _of_another_run(name: str) -> bool:
    """A rig's names carry the pid of its test run: several may run on one machine."""
    owner = re.search(r"colotq?(\d+)|colo-test-bpf-(\d+)-", name)
    return owner is not None and str(os.getpid()) not in owner.groups()


def _leftovers() -> set[str]:
    return {name for name in _all_there_is() if not _of_another_run(name)}


def _all_there_is() -> set[str]:
    """What tests make is called colot... or lies in a directory of pytest's."""
    found = {f"namespace {p.name}" for p in Path("/var/run/netns").glob("colot*")}
    found |= {f"link {p.name}" for p in Path("/sys/class/net").glob("colot*")}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if "colot" in line or "colo-test" in line:
            found.add(f"mount {line.split()[1]}")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            ours = b"colot" in words or b"pytest-of" in words
            kinds = b"qemu-system" in words or b"colo_ebpf" in words or words.startswith(b"etcd\0")
            if ours and kinds:
                found.add(f"process {entry.parent.name} {words[:200].decode(errors='replace')}")
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker is given a file at a time, or all of those that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return _TOGETHER.get(file.parent.name, str(file))

    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure with real VMs comes with what daemons, QEMUs and guests said."""
    report = yield
    for name in ("tests.lab", "tests.qemu.pair"):
        if report.failed and name in sys.modules:
            report.sections += sys.modules[name].logs()
    return report


@pytest.fixture(scope="session", autouse=True)
def rigs_are_closed() -> Iterator[None]:
    """They are kept from test to test."""
    yield
    from tests.bpf.hosts import TwoHosts
    from tests.bpf.rig import Rig

    TwoHosts.close()
    Rig.close_all()
    if "tests.lab" in sys.modules:
        sys.modules["tests.lab"].planes.close()


def pytest_sessionstart(session: pytest.Session) -> None:
    """What was there before."""
    session.config.stash[_BEFORE] = _leftovers()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compares namespaces, links, mounts and processes before and after; workers have ended.

    Not with COLO_TESTS_BESIDE: other runs go on beside this one, and labs have fixed names.
    """
    if hasattr(session.config, "workerinput") or "COLO_TESTS_BESIDE" in os.environ:
        return
    left = _leftovers() - session.config.stash[_BEFORE]
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nleft behind: {sorted(left)}")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell, while the test runs."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end=" ", flush=True)

    return tell
