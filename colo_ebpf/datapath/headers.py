# SPDX-License-Identifier: GPL-2.0-only
"""Kernel headers for bcc.

bcc 0.26 looks in ``/lib/modules/<release>/{build,source}``, or in the one directory that
``BCC_KERNEL_SOURCE`` names. Any 6.1 headers do for TC programs. Debian splits them in two
packages, so a merged tree of symbolic links is made of both.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from colo_ebpf.errors import LoadError

_MARK = Path("include/linux/kconfig.h")


def find(cache: Path) -> Path | None:
    """The directory bcc should use; None: bcc finds the running kernel's own by itself.

    `cache` is where a merged tree may be made. LoadError if this host has no headers.
    """
    named = os.environ.get("BCC_KERNEL_SOURCE")
    if named and (Path(named) / _MARK).exists():
        return Path(named)
    own = Path("/lib/modules") / os.uname().release
    if any((own / part / _MARK).exists() for part in ("build", "source")):
        return None
    for flavour in sorted(Path("/usr/src").glob("linux-headers-6.1.*-amd64"), reverse=True):
        common = flavour.parent / f"{flavour.name.rsplit('-', 1)[0].removesuffix('-cloud')}-common"
        if (common / _MARK).exists():
            return _merged(common, flavour, cache / flavour.name)
    raise LoadError(
        f"kernel headers: none for {os.uname().release} and no Debian 6.1 headers in /usr/src; "
        f"install linux-headers-{os.uname().release} or linux-headers-cloud-amd64"
    )


def _merged(common: Path, flavour: Path, target: Path) -> Path:
    done = target / ".complete"
    if done.exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    for tree in (common, flavour):
        for base, _, files in os.walk(tree):
            directory = target / Path(base).relative_to(tree)
            directory.mkdir(parents=True, exist_ok=True)
            for name in files:
                link = directory / name
                link.unlink(missing_ok=True)
                link.symlink_to(Path(base) / name)
    done.touch()
    return target
