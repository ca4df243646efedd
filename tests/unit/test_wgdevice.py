# SPDX-License-Identifier: GPL-2.0-only
"""Devices of wireguard-go, made and used as the daemon does. `tests/link` has the kernel's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.net import bridges, namespaces, wgdevice
from colo_ebpf.datapath.net.wireguard import TunnelEnds
from colo_ebpf.errors import AttachError
from colo_ebpf.lab import processes
from tests.capabilities import require
from tests.link import tunnels

_NS = f"colot{os.getpid()}wg"
_ENDS = TunnelEnds(_NS, "10.0.0.1", "10.0.0.2", 28_001, 20_001)


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the kernel could do it."""
    require("root", "wireguard-go")
    monkeypatch.setattr(wgdevice, "kernel_lacks", lambda: "not asked")


@pytest.mark.parametrize("scenario", tunnels.ALL, ids=lambda one: str(one.__name__))
def test_of_a_program(scenario: Callable[[], None]) -> None:
    scenario()


@pytest.fixture
def namespace() -> Iterator[Callable[..., object]]:
    namespaces.create(_NS)
    try:
        yield lambda function: namespaces.run_in(_NS, function)
    finally:
        namespaces.remove(_NS)


def test_a_program_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: Callable[..., object]
) -> None:
    program = tmp_path / wgdevice.PROGRAM
    program.write_text("#!/bin/sh\necho no such file: /dev/net/tun >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(AttachError, match=r"wireguard-go wg-.*: no such file: /dev/net/tun"):
        namespace(lambda: wgdevice.set_up(_ENDS, 1500))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(AttachError, match="start wireguard-go: No such file"):
        namespace(lambda: wgdevice.set_up(_ENDS, 1500))


def test_the_program_goes_before_vms(namespace: Callable[..., object]) -> None:
    """As found: sixteen emulated VMs on two processors left it so little that no pair was made."""
    try:
        namespace(lambda: wgdevice.set_up(_ENDS, 1500))
        pids = processes.in_namespace(_NS)
        found = [pid for pid in pids if wgdevice.PROGRAM in processes.command_of(pid)]
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in found] == [-10]
    finally:
        namespace(lambda: wgdevice.remove(_ENDS))


def test_a_device_of_somebody_elses_is_left_alone(namespace: Callable[..., object]) -> None:
    namespace(lambda: bridges.create(_ENDS.device))
    with pytest.raises(AttachError, match="no device of WireGuard: remove it"):
        namespace(lambda: wgdevice.set_up(_ENDS, 1500))


def test_a_port_that_is_taken_is_told(namespace: Callable[..., object]) -> None:
    other = TunnelEnds(f"{_NS}2", "10.0.0.1", "10.0.0.2", _ENDS.port, 20_002)
    try:
        namespace(lambda: wgdevice.set_up(other, 1500))
        with pytest.raises(AttachError, match="Address already in use"):
            namespace(lambda: wgdevice.set_up(_ENDS, 1500))
    finally:
        namespace(lambda: wgdevice.remove(other))
        namespace(lambda: wgdevice.remove(_ENDS))
