# SPDX-License-Identifier: GPL-2.0-only
"""Hanging up for another process, whose sockets these are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from colo_ebpf.control.qemu.hangup import closed, hang_up
from colo_ebpf.errors import VmError
from tests.capabilities import require

_SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 0), family=family)
other = socket.create_server((sys.argv[1], 0), family=family)
print(server.getsockname()[1], other.getsockname()[1], flush=True)
taken = [server.accept()[0] for _ in range(2)] + [other.accept()[0]]
print("all there", flush=True)
for one in taken[:2]:
    print(len(one.recv(1)), flush=True)
try:
    server.accept()
except OSError:
    print("closed", flush=True)
print(len(taken[2].recv(1)), flush=True)
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root")


@contextlib.contextmanager
def _serving(address: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", _SERVER, address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_all_on_the_port_are_cut_off_and_nobody_else(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(_serving(address))
        port, other = (int(word) for word in _line(child).split())
        clients = [stack.enter_context(socket.socket(family)) for _ in range(3)]
        for client, to in zip(clients, (port, port, other), strict=True):
            client.connect((address, to))
        assert _line(child) == "all there"
        connections = hang_up(child.pid, port)
        assert len(connections) == 2
        assert [_line(child) for _ in range(2)] == ["0", "0"], "the end, not a byte"
        assert _line(child) == "closed"
        with pytest.raises(OSError, match="refused"):
            stack.enter_context(socket.socket(family)).connect((address, port))
        clients[2].sendall(b"x")
        assert _line(child) == "1"


def test_where_nobody_listens_nothing_is_done() -> None:
    assert hang_up(os.getpid(), 9) == {}


def test_it_is_told_when_the_process_has_closed_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as taken:
            connections = hang_up(os.getpid(), port)
            assert list(connections) == [taken.fileno()]
            assert taken.recv(1) == b""
            assert not closed(os.getpid(), connections)
            taken.close()
            assert closed(os.getpid(), connections)
            with socket.socket() as other:  # the same descriptor, of something else
                assert other.fileno() in connections
                assert closed(os.getpid(), connections)


def test_a_process_that_is_gone_is_told() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(VmError, match=f"process {child.pid}"):
        hang_up(child.pid, 10809)
