# SPDX-License-Identifier: GPL-2.0-only
"""What is there under the name of a VM's tap already; and VMs' names as directories of pins."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.net import namespaces, netdev, ownership, tuntap
from colo_ebpf.errors import AttachError, LoadError
from tests.capabilities import require

MTU = 1500


@pytest.fixture
def namespace() -> Iterator[str]:
    require("root")
    name = f"colott{os.getpid()}"
    namespaces.create(name)
    yield name
    namespaces.remove(name)


def _ip(namespace: str, *words: str) -> None:
    subprocess.run(["ip", "-n", namespace, *words], check=True, timeout=10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("tuntap", "add", "dev", "t0", "mode", "tap", "multi_queue"),
            r"made with multi_queue.*ip tuntap del dev t0 mode tap multi_queue\)",
        ),
        (("link", "add", "t0", "type", "bridge"), r"no tap \(bridge\): name another one"),
        (("tuntap", "add", "dev", "t0", "mode", "tun"), r"no tap \(tun\): name another one"),
    ],
)
def test_what_is_no_tap_of_ours_is_refused_in_words(
    namespace: str, words: tuple[str, ...], said: str
) -> None:
    _ip(namespace, *words)
    with pytest.raises(AttachError, match=said):
        namespaces.run_in(namespace, lambda: tuntap.open_tap("t0"))
    if "multi_queue" in words:  # before any VM is started
        with pytest.raises(AttachError, match=said):
            namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU))


def test_a_tap_without_the_queues_that_a_vm_has_is_refused_in_words(namespace: str) -> None:
    _ip(namespace, "tuntap", "add", "dev", "t0", "mode", "tap")
    said = r"without multi_queue.*more than 1.*\(ip tuntap del dev t0 mode tap\); the daemon makes"
    with pytest.raises(AttachError, match=said):
        namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU, 4))
    with pytest.raises(AttachError, match=said):
        namespaces.run_in(namespace, lambda: tuntap.open_queues("t0", 4))


def test_a_tap_with_queues_is_one_vms(namespace: str) -> None:
    namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU, 4))
    fds = namespaces.run_in(namespace, lambda: tuntap.open_queues("t0", 4))
    try:
        assert len(set(fds)) == 4
        namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU, 4))  # a restart
        namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU, 1))  # with other keys
        with pytest.raises(AttachError, match="another process has it open: end it"):
            namespaces.run_in(namespace, lambda: tuntap.open_queues("t0", 4))
    finally:
        for fd in fds:
            os.close(fd)
    with pytest.raises(AttachError, match="made with multi_queue, and vm"):
        namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU, 1))
    again = namespaces.run_in(namespace, lambda: tuntap.open_queues("t0", 4))
    for fd in again:
        os.close(fd)


def test_the_vms_tap_is_made_anew_for_other_queues(namespace: str) -> None:
    """Unless the VM has it open: it has the queues that it was started with."""

    def outdated(vm: str, queues: int) -> bool:
        ownership.drop_outdated(vm, {"t0": queues}, "vx0", 4789)
        return not netdev.exists("t0")

    def look() -> None:
        tuntap.create_tap("t0", MTU)
        ownership.mark("t0", "web")
        assert not outdated("web", 1), "it is as it should be"
        assert not outdated("other", 4), "it is not that VM's"
        vm = tuntap.open_tap("t0")
        assert not outdated("web", 4), "the VM has it open"
        os.close(vm)
        assert outdated("web", 4)
        tuntap.create_tap("t0", MTU, 4)
        ownership.mark("t0", "web")
        assert not outdated("web", 2), "another number of several"
        assert outdated("web", 1)

    namespaces.run_in(namespace, look)


def test_a_tap_that_a_vm_has_is_left_to_it(namespace: str) -> None:
    namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU))
    vm = namespaces.run_in(namespace, lambda: tuntap.open_tap("t0"))
    try:
        namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU))  # a daemon's restart
        with pytest.raises(AttachError, match="another process has it open: end it"):
            namespaces.run_in(namespace, lambda: tuntap.open_tap("t0"))
    finally:
        os.close(vm)
    namespaces.run_in(namespace, lambda: tuntap.create_tap("t0", MTU))


def test_any_name_of_a_vm_is_one_of_a_pin_directory(tmp_path: Path) -> None:
    require("root", "bpf")
    names = ("www.example.org", "www-example-org", "www_example.org", "web", "a.b", "a..b")
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True)
    try:
        made = {loader.make_pin_directory(tmp_path, name) for name in names}
        assert len(made) == len(names)
        assert all(path.is_dir() for path in made)
        assert loader.make_pin_directory(tmp_path, "web").name == "web"
        with pytest.raises(LoadError, match=r"cannot be made: .*; may root write there\?"):
            loader.make_pin_directory(tmp_path / "with.dot", "web")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
