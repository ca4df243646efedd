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


def _nginx() -> str:
    return "" if shutil.which("nginx") else "nginx is not installed"


def _etcd() -> str:
    return "" if shutil.which("etcd") else "etcd is not installed (package etcd-server)"


def _guest() -> str:
    return "" if (GUEST / "initramfs.gz").exists() else "no guest in build/guest: run make guest"


def _guest_apps() -> str:
    tools = ("ab", "curl", "redis-benchmark", "ssh")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        return f"{missing[0]} is not installed: run make guest-apps"
    built = (GUEST / "apps" / "disk.ext4").exists()
    return "" if built else "no guest in build/guest/apps: run make guest-apps"


_PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "bpf": _bpf,
    "qemu": _qemu,
    "guest": _guest,
    "guest-apps": _guest_apps,
    "nginx": _nginx,
    "etcd": _etcd,
    "qemu-nbd": _qemu_nbd,
    "e2fsprogs": _e2fsprogs,
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
