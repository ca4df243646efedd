# SPDX-License-Identifier: GPL-2.0-only
"""Two machines with Debian's own kernel and systemd, which QEMU emulates, in a namespace of ours.

They are hosts a and b. A machine is ten to fifteen times
slower than the host that emulates it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.packages import middle
from tests.packages.fresh import Fresh
from tests.packages.middle import HOSTS, Host

NAMESPACE = "colotm"
GUEST = f"{middle.CLIENTS}.10"
_BOOTS_S = 600.0
_LOOK_S = 5.0
_RECOMMENDED = "python3-prometheus-client"  # by the packages; apt installs it for a user
# In the machine: networks by the order of its cards, a bridge for the clients.
_NET_UP = """#!/bin/sh
n=$(sed 's/.*colo.number=\\([0-9]*\\).*/\\1/' /proc/cmdline)
ip link set eth0 mtu 1700 up && ip addr add 192.0.2.$n/24 dev eth0
ip link set eth1 up && ip addr add 198.51.100.$n/24 dev eth1
ip link add br0 address 02:00:00:00:0c:0$n type bridge && ip link set br0 up
ip link set eth2 up master br0
"""
_NET_UNIT = """[Unit]
Before=network-online.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/net-up
[Install]
WantedBy=multi-user.target network-online.target
"""
# What has a deadline is given ten times of it and more: the machines are so slow.
_CONFIG = """
[vm]
name = "web"
memory-mib = 128
accel = "tcg"
kernel = "/var/lib/colo-ebpf/vmlinuz"
initrd = "/var/lib/colo-ebpf/initramfs.gz"
preload = "/var/lib/colo-ebpf/libtcgdirty.so"
append = "console=ttyS0 no_timer_check mitigations=off random.trust_cpu=on colo.ip={guest}/24"
user = "colo-qemu"
[[vm.nic]]
mac = "52:54:00:12:34:56"
tap = "tapweb"
bridge = "br0"
mtu = 1500
[[vm.disk]]
path = "/var/lib/colo-ebpf/web.raw"
overlay-dir = "/dev/shm/colo-ebpf/web"
format = "raw"
[start]
role = "{role}"
[checkpoint]
longest-wait-ms = 20000
[timing]
heartbeat-ms = 200
peer-timeout-ms = 4000
link-timeout-ms = 2000
compare-timeout-ms = 2000
arm-timeout-ms = 4000
qmp-timeout-ms = 60000
hang-timeout-ms = 30000
checkpoint-timeout-ms = 120000
daemon-grace-ms = 300000
arbiter-timeout-ms = 20000
start-timeout-ms = 600000
"""


def config_of(host: str) -> str:
    """Of VM web, for this host."""
    role = "primary" if host == "a" else "secondary"
    return _CONFIG.format(guest=GUEST, role=role) + middle.tables_of(host)


def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    """What happens in there tells nobody out here."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:.0f} s"
        time.sleep(_LOOK_S)


def _run(
    *words: str | Path, check: bool = False, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=check,
        timeout=timeout,
    )


def make_system(debian: Fresh, directory: Path, packages: list[Path], guest: Path) -> None:
    """Install what a host has, with the packages as a user installs them; write its disk's image,
    its kernel and a key to log in with."""
    root = debian.root
    debian.apt("install", "apparmor", "initramfs-tools", "iproute2", "kmod", "linux-image-amd64",
               "openssh-server", "systemd-sysv", "udev")  # fmt: skip
    (version,) = (path.name for path in (root / "lib/modules").iterdir())
    for path in packages:
        shutil.copy(path, root / "root")
    debian.apt("install", f"linux-headers-{version}", _RECOMMENDED,
               *(f"/root/{one.name}" for one in packages))  # fmt: skip
    (root / "usr/sbin/policy-rc.d").unlink()
    script = root / "usr/local/sbin/net-up"
    script.write_text(_NET_UP)
    script.chmod(0o755)
    (root / "etc/systemd/system/net-up.service").write_text(_NET_UNIT)
    debian.run("systemctl", "enable", "net-up", "ssh")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 0\n")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key", check=True)
    keys = root / "root/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(directory / "key.pub", keys)
    for name in ("vmlinuz", "initramfs.gz", "libtcgdirty.so"):
        shutil.copy(guest / name, root / "var/lib/colo-ebpf" / name)
    with (root / "var/lib/colo-ebpf/web.raw").open("wb") as image:
        image.truncate(64 << 20)
    key = root / "etc/colo-ebpf/key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        (found,) = (root / "boot").glob(pattern)
        shutil.copy(found, directory / name)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, directory / "root", "8G",
         check=True)  # fmt: skip


@dataclass
class Machine(Host):
    """One host. `directory` has what `make_system` made."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Power on; the disk is as it was when the machine was last off."""
        number, disk = HOSTS[self.name], self.directory / f"{self.name}.qcow2"
        if not disk.exists():
            words = ("-f", "qcow2", "-b", self.directory / "root", "-F", "raw")
            _run("qemu-img", "create", "-q", *words, disk, check=True)
        kernel = f"root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.hostname={self.name}"
        argv: list[str | Path] = [
            *("ip", "netns", "exec", NAMESPACE, "qemu-system-x86_64", "-M", "pc"),
            *("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max", "-smp", "1", "-m", "3072"),
            *("-display", "none", "-monitor", "none", "-no-reboot"),
            *("-serial", f"file:{self.directory / self.name}.serial"),
            *("-kernel", self.directory / "kernel", "-initrd", self.directory / "initrd"),
            *("-append", f"{kernel} no_timer_check colo.number={number}"),
            *("-drive", f"file={disk},if=virtio,cache=unsafe"),
        ]
        for place, (net, mtu) in enumerate(middle.MTUS.items()):
            tap = f"tap,id=n{place},ifname={net}{self.name},script=no,downscript=no"
            card = f"virtio-net,netdev=n{place},mac=02:00:00:00:0{place}:0{number},host_mtu={mtu}"
            argv += ["-netdev", tap, "-device", card]
        with (self.directory / f"{self.name}.out").open("ab") as out:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def until_up(self) -> None:
        """Its systemd has started all that it was told to, or some of it failed."""
        until(lambda: self.ask("true").returncode == 0, f"{self.name} is up", _BOOTS_S)

    def ask(self, command: str, within_s: float = 300) -> subprocess.CompletedProcess[str]:
        """As root, in its shell."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=60")
        words = ["ip", "netns", "exec", NAMESPACE, "ssh", "-q", "-i", str(self.directory / "key")]
        for option in options:
            words += ["-o", option]
        return _run(*words, f"root@198.51.100.{HOSTS[self.name]}", command, timeout=within_s)

    def status(self) -> dict[str, Any]:
        """Of VM web; empty while no daemon answers."""
        done = self.ask("colo-ebpf status web --json")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def journal(self) -> str:
        """What the VM's unit has said last."""
        return self.ask("journalctl -u colo-ebpf@web -o cat -n 40").stdout

    def kill(self) -> None:
        """As a host dies."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wait_off(self, within_s: float) -> None:
        """It was told to power off."""
        assert self.process is not None
        self.process.wait(within_s)
        self.process = None


@contextmanager
def network(directory: Path) -> Iterator[None]:
    """The networks, and a tap for each card of the machines."""
    with middle.networks(NAMESPACE, directory):
        for name, host in product(middle.MTUS, HOSTS):
            middle.ip(NAMESPACE, "tuntap", "add", f"{name}{host}", "mode", "tap")
            middle.plug(NAMESPACE, name, f"{name}{host}")
        yield
