# SPDX-License-Identifier: GPL-2.0-only
"""A fresh Debian in a directory, to install packages in.

Whatever is mounted there is mounted in a namespace of the command that runs in it, and gone with
it: the directory can be removed at any time.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

RELEASES = {"12": "bookworm", "13": "trixie"}
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_ENTER = """
mount -t proc proc "$0/proc" && mount -t sysfs sys "$0/sys" && mount -t tmpfs run "$0/run"
[ ! -e "$0/usr/bin/apt-get" ] || cp /etc/resolv.conf "$0/etc/resolv.conf"
exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "$@"
"""
# A daemon that a package starts would outlive the test.
_NO_DAEMONS = "#!/bin/sh\nexit 101\n"
# What apt and dpkg keep of a package that was there, logs, and the list of users before the last.
_OF_APT = (
    *("var/lib/apt/", "var/lib/dpkg/", "var/cache/apt/", "var/log/", "var/cache/ldconfig/"),
    *("etc/shadow-", "etc/passwd-", "etc/group-", "etc/gshadow-"),
)
_CANNOT_FETCH = ("Failed getting release file", "Couldn't download", "Temporary failure resolving")


@dataclass(frozen=True, slots=True)
class Fresh:
    """`root`: its directory."""

    root: Path

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in it."""
        done = subprocess.run(
            [*_UNSHARE, "sh", "-c", _ENTER, str(self.root), *words],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done

    def apt(self, *words: str) -> None:
        """Without recommended packages."""
        self.run("apt-get", "-q", "-y", "--no-install-recommends", *words)

    def files(self) -> set[str]:
        """All there are, but what apt keeps for itself."""
        found = set()
        for directory, inner, files in os.walk(self.root):
            at = Path(directory).relative_to(self.root)
            found |= {str(at / name) for name in (*inner, *files)}
        return {name for name in found if not f"{name}/".startswith(_OF_APT)}


def release_of(package: Path) -> str:
    """The Debian that a package of ours was built for, as its file's name says."""
    found = re.search(r"\+deb(\d+)_", package.name)
    assert found, package
    return found[1]


def debian(root: Path, version: str) -> Fresh:
    """Unpack one; skips where no mirror is reached, but for CI."""
    done = subprocess.run(
        [*_UNSHARE, "debootstrap", "--variant=minbase", RELEASES[version], str(root), _mirror()],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = f"{done.stdout}{done.stderr}"
    if done.returncode and any(words in said for words in _CANNOT_FETCH):
        text = f"needs a mirror of Debian {version}: {said.strip().splitlines()[-1]}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    assert done.returncode == 0, said
    (root / "usr/sbin/policy-rc.d").write_text(_NO_DAEMONS)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    return Fresh(root)


def _mirror() -> str:
    """The one that this host installs from."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Origin: Debian"],
        capture_output=True,
        text=True,
        check=True,
    )
    sites = dict(line.split() for line in done.stdout.splitlines() if line)
    return next(site for name, site in sites.items() if name in RELEASES.values())


def remove(root: Path) -> None:
    """Nothing is mounted below it, or else that is left alone."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=True)
