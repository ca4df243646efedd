# SPDX-License-Identifier: GPL-2.0-only
"""Hosts a and b as Debians with their own systemd, journal and network, on the kernel of this host.

systemd-nspawn runs them with all capabilities: what a package installs, and what its units do, is
seen at the speed of this host. What only Debian's kernel does is seen on the machines.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.packages import middle
from tests.packages.middle import HOSTS, Host

NAMESPACE = "colotc"
_CARDS = dict(zip(middle.MTUS, ("eth0", "eth1", "eth2"), strict=True))
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOTS_S, _LOOK_S = 120.0, 0.1
# Of a host systemd mounts it itself, and of a container it does not let a mount unit do it.
_BPF = """[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount -t bpf -o mode=0700 bpf /sys/fs/bpf
[Install]
WantedBy=sysinit.target
"""


@dataclass
class Container(Host):
    """One host. `root`: its Debian; `binds`: directories of this host that it sees, by where."""

    name: str
    root: Path
    binds: dict[str, Path] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def namespace(self) -> str:
        """Of its network."""
        return f"{NAMESPACE}{self.name}"

    def start(self) -> None:
        """Power on: its network, then its systemd; back when units are started."""
        self._wire()
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/systemd/system/bpf.service").write_text(_BPF)
        systemctl = ["systemctl", "--quiet", f"--root={self.root}", "enable", "bpf"]
        subprocess.run(systemctl, check=True)
        environment = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"}
        environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
        argv = [
            *("nsenter", f"--net=/run/netns/{self.namespace}"),
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
            *("--directory", str(self.root), f"--machine={self.namespace}"),
            "--capability=all",
            "--system-call-filter=bpf perf_event_open pidfd_getfd",
            *("--link-journal=no", "--console=pipe", "--bind=/dev/net/tun"),
            *(f"--bind-ro={at}:{where}" for where, at in self.binds.items()),
        ]
        with self.root.with_suffix(".out").open("ab") as out:
            self._process = subprocess.Popen(
                argv,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._until_up()

    def _wire(self) -> None:
        number = HOSTS[self.name]
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        for net, card in _CARDS.items():
            wire, mtu = f"{net}{self.name}", str(middle.MTUS[net])
            ends = ("name", card, "netns", self.namespace)
            middle.ip(NAMESPACE, "link", "add", wire, "type", "veth", "peer", *ends)
            middle.plug(NAMESPACE, net, wire)
            middle.ip(self.namespace, "link", "set", card, "mtu", mtu, "up")
        here = self.namespace
        middle.ip(here, "link", "set", "lo", "up")
        middle.ip(here, "address", "add", f"{middle.LINK}.{number}/24", "dev", "eth0")
        middle.ip(here, "address", "add", f"{middle.MANAGEMENT}.{number}/24", "dev", "eth1")
        bridge = ("br0", "address", f"02:00:00:00:0c:0{number}", "type", "bridge")
        middle.ip(here, "link", "add", *bridge)
        middle.ip(here, "link", "set", "br0", "up")
        middle.ip(here, "link", "set", "eth2", "master", "br0")

    def _until_up(self) -> None:
        deadline = time.monotonic() + _BOOTS_S
        while self.ask("systemctl is-active --quiet basic.target").returncode:
            assert time.monotonic() < deadline, self.root.with_suffix(".out").read_text()
            time.sleep(_LOOK_S)

    def _first(self) -> int | None:
        """Its process 1, as this host numbers it."""
        if self._process is None:
            return None
        with contextlib.suppress(OSError):
            of = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            return int(of.split()[0]) if of.split() else None
        return None

    def command(self, *words: str) -> list[str]:
        """What runs a command there."""
        enter = ["nsenter", "--all", f"--target={self._first()}"]
        return [*enter, "env", "-i", f"PATH={_PATH}", "HOME=/root", "LC_ALL=C.UTF-8", *words]

    def ask(self, command: str, within_s: float = 300) -> subprocess.CompletedProcess[str]:
        """As root, in its shell."""
        words = ["false"] if self._first() is None else self.command("sh", "-c", command)
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=within_s,
        )

    def kill(self) -> None:
        """As a host dies: all its processes at once, and its network."""
        if self._process is None:
            return
        first = self._first()
        os.kill(first or self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        for net in middle.MTUS:
            middle.ip(NAMESPACE, "link", "delete", f"{net}{self.name}")
        subprocess.run(["ip", "netns", "delete", self.namespace], check=True)
