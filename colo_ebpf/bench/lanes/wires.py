# SPDX-License-Identifier: GPL-2.0-only
"""Namespaces, wires and servers of a lane. Guests are namespaces, each with a TCP of its own.

::

    client: eth0 ══ up0 :host: br0 ── what the lane puts here ── eth0 :guest

A VM's tap is one queue, and a VM with one CPU sends in order. A namespace does so only if all its
work is done on one CPU: the server is bound to it, and RPS moves there what arrives. Each guest
has a CPU of its own, the same in every lane; the client has the choice.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from colo_ebpf.bench.lanes import workload
from colo_ebpf.datapath.net import bridges, namespaces, rps
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import mounts, processes
from colo_ebpf.lab.topology import (
    BRIDGE,
    CLIENT_ADDRESS,
    DEFAULT_GUEST_ADDRESS,
    GUEST_MTU,
    MAC,
    PREFIX_LENGTH,
    UPLINK,
)

T = TypeVar("T")
ETH, CLIENT = "eth0", "client"
_CLIENT_MAC = "52:54:00:77:00:01"
_NAME = re.compile(r"colobench-(\d+)-")
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/ip_local_port_range": "10000 65000",  # no port comes back within seconds
    "net/core/somaxconn": "16384",
    "net/ipv4/tcp_max_syn_backlog": "16384",
}


def prefix() -> str:
    """What the names of everything here begin with."""
    return f"colobench-{os.getpid()}-"


def guest_cpus() -> tuple[int, int]:
    """The CPU of the first guest, and that of the second."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A directory with the programs, for the time of a run; what dead runs left is removed."""
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix=prefix()))
    try:
        workload.build(directory)
        with _backlog():
            yield directory
    finally:
        _remove(directory)


@contextlib.contextmanager
def _backlog() -> Iterator[None]:
    """In all lanes as `packaging/60-colo-ebpf.conf` has it."""
    frames = rps.backlog_frames()
    if frames is None or frames >= rps.BACKLOG_FRAMES:
        yield
        return
    rps.BACKLOG.write_text(f"{rps.BACKLOG_FRAMES}\n")
    try:
        yield
    finally:
        rps.BACKLOG.write_text(f"{frames}\n")


def _remove(directory: Path) -> None:
    mounts.unmount(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _sweep() -> None:
    for name in namespaces.names():
        if _left_behind(name):
            processes.end(name)
            namespaces.remove(name)
    for path in Path(tempfile.gettempdir()).glob("colobench-*"):
        if _left_behind(path.name):
            _remove(path)


def _left_behind(name: str) -> bool:
    match = _NAME.match(name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


def run(argv: Sequence[str], text: str = "") -> None:
    """A command that has to succeed. Raises BenchError."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")


def ip(namespace: str, *commands: str) -> None:
    """Commands of `ip` in a namespace. Raises BenchError."""
    for command in commands:
        run(["ip", "-n", namespace, *command.split()])


class Wires:
    """What a lane is made of; `close` removes it."""

    def __init__(self, lane: str, directory: Path) -> None:
        self.directory = directory
        self._lane = re.sub(r"\W+", "-", lane)
        self.stack = contextlib.ExitStack()

    def close(self) -> None:
        """In the reverse order of its making."""
        self.stack.close()

    def name(self, what: str) -> str:
        """Of a namespace."""
        return f"{prefix()}{self._lane}-{what}"

    def add(self, what: str) -> str:
        """A namespace with the settings all have."""
        name = self.name(what)
        namespaces.create(name)
        self.stack.callback(self.remove, what)
        for setting, value in _SYSCTLS.items():
            self.set(what, setting, value)
        return name

    def remove(self, what: str) -> None:
        """A namespace, before the lane goes."""
        processes.end(self.name(what))
        namespaces.remove(self.name(what))

    def set(self, what: str, setting: str, value: str) -> None:
        """A sysctl of a namespace."""
        self.inside(what, lambda: Path("/proc/sys", setting).write_text(f"{value}\n"))

    def inside(self, what: str, function: Callable[[], T]) -> T:
        """Run something in a namespace."""
        return namespaces.run_in(self.name(what), function)

    def add_client(self, host: str) -> None:
        """The client, and the bridge of the host it is wired to."""
        client, there = self.add(CLIENT), self.name(host)
        self.inside(host, lambda: bridges.create(BRIDGE))
        namespaces.create_veth(ETH, UPLINK, client, there, GUEST_MTU)
        self.inside(host, lambda: bridges.join(UPLINK, BRIDGE))
        self._address(client, _CLIENT_MAC, CLIENT_ADDRESS, MAC, DEFAULT_GUEST_ADDRESS)

    def finish_guest(self, guest: str, cpu: int) -> None:
        """The guest's eth0 is there: its address, and all it receives goes to its CPU."""
        name = self.name(guest)
        self._address(name, MAC, DEFAULT_GUEST_ADDRESS, _CLIENT_MAC, CLIENT_ADDRESS)
        path = f"/sys/class/net/{ETH}/queues/rx-0/rps_cpus"
        run(["ip", "netns", "exec", name, "tee", path], f"{rps.cpu_mask((cpu,))}\n")

    def _address(self, name: str, mac: str, address: str, their_mac: str, theirs: str) -> None:
        ip(
            name,
            f"link set {ETH} address {mac}",
            f"link set {ETH} up",
            f"addr add {address}/{PREFIX_LENGTH} dev {ETH}",
            f"neigh replace {theirs} lladdr {their_mac} dev {ETH} nud permanent",
        )

    def start(
        self, what: str, argv: Sequence[str], log: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        """A process in a namespace; it ends with the lane."""
        process = subprocess.Popen(
            [*workload.enter(self.name(what)), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        self.stack.callback(_end, process)
        return process

    def serve(self, guest: str, cpu: int) -> subprocess.Popen[bytes]:
        """The server of a guest, ready."""
        program = [str(self.directory / "serve"), str(cpu)]
        process = self.start(guest, program, subprocess.DEVNULL)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError(f"the server of {self.name(guest)} does not start")
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
