# SPDX-License-Identifier: GPL-2.0-only
"""What a test needs of the machine. A lacking capability skips by name; in CI it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUEST = ROOT / "build" / "guest"
_PROMTOOL = ROOT / "build" / "prometheus" / "usr" / "bin" / "promtool"  # of scripts/setup.sh


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _bpf() -> str:
    try:
        import bcc  # noqa: F401
    except ImportError:
        return "python3-bpfcc is not installed"
    return _root()


def _qemu() -> str:
    return "" if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not installed"


def _qemu_nbd() -> str:
    return "" if shutil.which("qemu-nbd") else "qemu-nbd is not installed: qemu-utils"


def _e2fsprogs() -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return "" if shutil.which("e2fsck", path=path) else "e2fsck is not installed: e2fsprogs"


def _loop() -> str:
    return "" if Path("/dev/loop-control").exists() else "no /dev/loop-control: modprobe loop"


def _nginx() -> str:
    return "" if shutil.which("nginx") else "nginx is not installed"


def _nft() -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return "" if shutil.which("nft", path=path) else "nft is not installed (package nftables)"


def _etcd() -> str:
    return "" if shutil.which("etcd") else "etcd is not installed (package etcd-server)"


def _virsh() -> str:
    return "" if shutil.which("virsh") else "virsh is not installed (package libvirt-clients)"


def _debootstrap() -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return "" if shutil.which("debootstrap", path=path) else "debootstrap is not installed"


def _nspawn() -> str:
    found = shutil.which("systemd-nspawn")
    return "" if found else "systemd-nspawn is not installed (package systemd-container)"


def _lintian() -> str:
    return "" if shutil.which("lintian") else "lintian is not installed"


def _chromium() -> str:
    return "" if shutil.which("chromium") else "chromium is not installed: run make guest-apps"


def _guest() -> str:
    return "" if (GUEST / "initramfs.gz").exists() else "no guest in build/guest: run make guest"


def _guest_boot() -> str:
    built = (GUEST / "boot.raw").exists() and (GUEST / "boot-uefi.raw").exists()
    return "" if built else "no disk in build/guest: run make guest-boot"


def _guest_link() -> str:
    built = (GUEST / "link" / "system.cpio").exists()
    return "" if built else "no system in build/guest/link: run make guest-link"


def _guest_apps() -> str:
    tools = ("ab", "curl", "redis-benchmark", "ssh")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        return f"{missing[0]} is not installed: run make guest-apps"
    built = (GUEST / "apps" / "disk.ext4").exists()
    return "" if built else "no guest in build/guest/apps: run make guest-apps"


def promtool_path() -> str:
    """Prometheus' own tool for metrics and rules; "": there is none."""
    return shutil.which("promtool") or (str(_PROMTOOL) if _PROMTOOL.exists() else "")


def _promtool() -> str:
    return "" if promtool_path() else "no promtool: run make setup"


def _br_netfilter() -> str:
    there = Path("/proc/sys/net/bridge").exists()
    return "" if there else "the kernel's bridges ask no packet filter (br_netfilter)"


def _mptcp() -> str:
    there = Path("/proc/sys/net/mptcp/enabled").exists()
    return "" if there else "the kernel has no multipath TCP (CONFIG_MPTCP)"


def _wireguard_go() -> str:
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    return "" if shutil.which("wireguard-go") else "wireguard-go is not installed"


_PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "bpf": _bpf,
    "wireguard-go": _wireguard_go,
    "qemu": _qemu,
    "guest": _guest,
    "guest-apps": _guest_apps,
    "guest-boot": _guest_boot,
    "guest-link": _guest_link,
    "nginx": _nginx,
    "mptcp": _mptcp,
    "br-netfilter": _br_netfilter,
    "etcd": _etcd,
    "nft": _nft,
    "qemu-nbd": _qemu_nbd,
    "e2fsprogs": _e2fsprogs,
    "loop": _loop,
    "promtool": _promtool,
    "virsh": _virsh,
    "debootstrap": _debootstrap,
    "lintian": _lintian,
    "nspawn": _nspawn,
    "chromium": _chromium,
}


def require(*names: str) -> None:
    """Skip the test, naming what is missing; with CI=true fail instead."""
    for name in names:
        missing = _PROBES[name]()
        if not missing:
            continue
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {name}: {missing}")
        pytest.skip(f"needs {name}: {missing}")
