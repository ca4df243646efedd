# SPDX-License-Identifier: GPL-2.0-only
"""Real etcd members on free ports of loopback, and what can be done to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_ebpf.control.arbiter.etcd import EtcdArbiter
from colo_ebpf.control.arbiter.etcd_client import Etcd, Tls
from colo_ebpf.lab import arbiter
from tests.etcd.certificates import Certificates

_READY_S, _POLL_S = 30.0, 0.02


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Member:
    """One etcd process."""

    def __init__(self, directory: Path, number: int, certificates: Certificates | None) -> None:
        self.name = f"member{number}"
        self.directory = directory / self.name
        self.port, self.peer_port, self.health_port = _free_ports(3)
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where its clients find it."""
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        """Where the other members find it."""
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self, members: list[Member]) -> None:
        """Start it, or start it again with the data it had."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = {
            "name": self.name,
            "data-dir": str(self.directory / "data"),
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": self.peer,
            "initial-advertise-peer-urls": self.peer,
            "initial-cluster": ",".join(f"{m.name}={m.peer}" for m in members),
            "listen-metrics-urls": f"http://127.0.0.1:{self.health_port}",
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "log-level": "error",
        }
        if self._certificates:
            command |= self._certificates.of_server()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["etcd", *(f"--{key}={value}" for key, value in command.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def healthy(self) -> bool:
        """It says that the cluster has a leader and commits."""
        return arbiter.healthy("127.0.0.1", self.health_port)

    def wait_healthy(self) -> None:
        """Until it is; the log is shown if it is late."""
        deadline = time.monotonic() + _READY_S
        while not self.healthy():
            log = (self.directory / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, f"{self.name} is not healthy:\n{log[-3000:]}"
            time.sleep(_POLL_S)

    def call(self, path: str, body: dict[str, Any], timeout_s: float = _READY_S) -> dict[str, Any]:
        """One request of the JSON gateway, for what the arbiter never does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("POST", path, json.dumps(body))
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def identity(self) -> str:
        """What the others call it."""
        return str(self._status()["header"]["member_id"])

    def leads(self) -> bool:
        """It is the leader."""
        status = self._status()
        return bool(status["leader"] == status["header"]["member_id"])

    def _status(self) -> dict[str, Any]:
        return self.call("/v3/maintenance/status", {})

    def pause(self) -> None:
        """SIGSTOP; it has stopped when this returns."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid}/stat")
        deadline = time.monotonic() + _READY_S
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, f"{self.name} does not stop"
            time.sleep(_POLL_S)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def runs(self) -> bool:
        """It was started and has not been killed."""
        return self._process is not None


class Cluster:
    """Members that know each other."""

    def __init__(
        self, directory: Path, size: int, certificates: Certificates | None = None
    ) -> None:
        self.members = [Member(directory, number, certificates) for number in range(size)]
        self._tls = certificates.of_client() if certificates else None

    def heal(self) -> None:
        """Start and resume what is not running, and wait until all are healthy."""
        for member in self.members:
            if member.runs:
                member.resume()
            else:
                member.start(self.members)
        for member in self.members:
            member.wait_healthy()

    def stop(self) -> None:
        """Kill all members and remove what they stored."""
        for member in self.members:
            member.kill()
            shutil.rmtree(member.directory, ignore_errors=True)

    def leader(self) -> Member:
        """The one that leads now."""
        deadline = time.monotonic() + _READY_S
        while len(found := [member for member in self.members if member.leads()]) != 1:
            assert time.monotonic() < deadline, f"{len(found)} members say that they lead"
            time.sleep(_POLL_S)
        return found[0]

    def move_leader(self) -> None:
        """To another member. A transfer that raft gives up is never answered: it is asked anew."""
        old, deadline = self.leader(), time.monotonic() + _READY_S
        while self.leader() is old:
            assert time.monotonic() < deadline, f"{old.name} remains the leader"
            other = next(member for member in self.members if member is not old)
            request = {"targetID": other.identity()}
            with contextlib.suppress(TimeoutError):
                old.call("/v3/maintenance/transfer-leadership", request, timeout_s=2)

    def arbiter(
        self,
        key: str,
        timeout_ms: int = 10_000,
        endpoints: list[str] | None = None,
        tls: Tls | None = None,
    ) -> EtcdArbiter:
        """A client of it, by itself."""
        etcd = Etcd(endpoints or self.endpoints, tls or self._tls, timeout_ms)
        return EtcdArbiter(etcd, key)

    @property
    def endpoints(self) -> list[str]:
        """Of all members."""
        return [member.endpoint for member in self.members]


@contextlib.contextmanager
def cluster(
    directory: Path, size: int, certificates: Certificates | None = None
) -> Iterator[Cluster]:
    """A healthy one; nothing is left of it."""
    one = Cluster(directory, size, certificates)
    try:
        one.heal()
        yield one
    finally:
        one.stop()
