# SPDX-License-Identifier: GPL-2.0-only
"""Which of the kernel headers on a host bcc is given."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import kernel_headers
from colo_ebpf.errors import LoadError

RUNNING = "6.18.44-fc"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty host that runs RUNNING."""
    for name in ("modules", "src", "unpacked"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setattr(kernel_headers, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(kernel_headers, "PLACES", (tmp_path / "src", tmp_path / "unpacked"))
    running = os.uname_result(("Linux", "host", RUNNING, "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: running)
    return tmp_path


def _package(place: Path, version: str, flavour: str, common: str = "common") -> None:
    """What Debian's two packages hold of the headers of one kernel."""
    shared = place / f"linux-headers-{version}-{common}"
    own = place / f"linux-headers-{version}-{flavour}"
    (shared / "include/linux").mkdir(parents=True, exist_ok=True)
    (shared / "include/linux/kconfig.h").touch()
    (own / "include/generated").mkdir(parents=True)
    (own / "include/generated/autoconf.h").touch()
    (own / "Makefile").write_text(f"include /usr/src/{shared.name}/Makefile\n")


def _found(host: Path) -> str:
    tree = kernel_headers.find(host / "cache")
    assert tree is not None
    assert (tree / "include/linux/kconfig.h").exists()
    assert (tree / "include/generated/autoconf.h").exists()
    return tree.name


def test_the_running_kernels_own_need_no_tree(host: Path) -> None:
    _package(host / "src", "6.12.118+deb13", "amd64")
    build = host / "modules" / RUNNING / "build" / "include/linux"
    build.mkdir(parents=True)
    (build / "kconfig.h").touch()
    assert kernel_headers.find(host / "cache") is None


@pytest.mark.parametrize(
    ("version", "flavour", "common"),
    [
        ("6.1.0-56", "cloud-amd64", "common"),
        ("6.1.0-56", "amd64", "common"),
        ("6.12.118+deb13", "cloud-amd64", "common"),
        ("6.12.118+deb13", "amd64", "common"),
        ("6.12.118+deb13", "rt-amd64", "common-rt"),
        ("7.3.4+deb13", "amd64", "common"),
    ],
)
def test_any_series_and_flavour_will_do(
    host: Path, version: str, flavour: str, common: str
) -> None:
    _package(host / "src", version, flavour, common)
    assert _found(host) == f"linux-headers-{version}-{flavour}"


def test_a_tree_of_headers_that_are_elsewhere_by_now_is_made_again(host: Path) -> None:
    """As found: a checkout was removed, and with it the headers that the tree linked to."""
    _package(host / "unpacked", "6.1.0-56", "amd64")
    assert _found(host)
    shutil.rmtree(host / "unpacked")
    _package(host / "src", "6.1.0-56", "amd64")
    assert _found(host)


def test_many_at_once_find_one_tree(host: Path) -> None:
    """As found: daemons of two checkouts unmade each other's tree while bcc read it."""
    _package(host / "src", "6.1.0-56", "amd64")
    for number in range(500):
        (host / "src/linux-headers-6.1.0-56-common" / f"{number}.h").touch()
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: kernel_headers.find(host / "cache"), range(64)))
    (tree,) = found
    assert tree is not None and (tree / "499.h").exists()
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]


def test_trees_of_two_checkouts_live_side_by_side(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = []
    for place in ("src", "unpacked"):
        _package(host / place, "6.1.0-56", "amd64")
        monkeypatch.setattr(kernel_headers, "PLACES", (host / place,))
        trees.append(kernel_headers.find(host / "cache"))
    assert len(set(trees)) == 2
    assert all(tree and (tree / "Makefile").exists() for tree in trees)


def test_the_nearest_series_is_taken(host: Path) -> None:
    _package(host / "src", "6.1.0-56", "amd64")
    _package(host / "src", "6.12.118+deb13", "cloud-amd64")
    _package(host / "src", "7.3.4+deb13", "amd64")
    assert _found(host) == "linux-headers-6.12.118+deb13-cloud-amd64"


@pytest.mark.parametrize(
    ("old", "new"), [("6.12.9+deb13", "6.12.118+deb13"), ("6.1.0-9", "6.1.0-56")]
)
def test_of_one_series_the_newest_is_taken(host: Path, old: str, new: str) -> None:
    for version in (old, new):
        _package(host / "src", version, "amd64")
    assert _found(host) == f"linux-headers-{new}-amd64"


def test_what_was_unpacked_for_the_running_kernel_comes_first(host: Path) -> None:
    _package(host / "src", "6.18.45", "amd64")
    _package(host / "unpacked", "6.18.44", "fc")
    assert _found(host) == "linux-headers-6.18.44-fc"


def test_headers_without_their_other_half_are_passed_over(host: Path) -> None:
    _package(host / "src", "6.1.0-56", "amd64")
    (host / "unpacked" / "linux-headers-6.12.118+deb13-amd64").mkdir()
    assert _found(host) == "linux-headers-6.1.0-56-amd64"


def test_a_host_without_any_is_told_what_to_do(host: Path) -> None:
    with pytest.raises(LoadError, match=rf"none for {RUNNING}.*run scripts/setup.sh"):
        kernel_headers.find(host / "cache")
