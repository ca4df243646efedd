# SPDX-License-Identifier: GPL-2.0-only
"""Kernel headers for bcc.

bcc looks in ``/lib/modules/<release>/{build,source}``, or in the one directory that
``BCC_KERNEL_SOURCE`` names. For TC programs the headers of any kernel do. Debian splits them in
two packages, so a merged tree of symbolic links is made of both.

``python -m colo_ebpf.datapath.bpf.kernel_headers`` ends with 0 if this host has some.
``scripts/setup.sh`` asks so, and unpacks some below ``build/headers`` if it has none: to install
the packages would install a kernel with them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

from colo_ebpf.errors import LoadError

MODULES = Path("/lib/modules")
PLACES = (Path("/usr/src"), Path(__file__).resolve().parents[3] / "build/headers/usr/src")
_MARK = Path("include/linux/kconfig.h")
_NAME = re.compile(r"linux-headers-(?P<release>(\d+)\.(\d+).*)")
_COMMON = re.compile(r"^include \S*/(linux-headers-\S+-common[^/\s]*)/Makefile", re.MULTILINE)


def find(cache: Path) -> Path | None:
    """The directory bcc should use; None: bcc finds the running kernel's own by itself.

    `cache` is where a merged tree may be made. LoadError if this host has no headers.
    """
    named = os.environ.get("BCC_KERNEL_SOURCE")
    if named and (Path(named) / _MARK).exists():
        return Path(named)
    running = os.uname().release
    own = MODULES / running
    if any((own / part / _MARK).exists() for part in ("build", "source")):
        return None
    pairs = [
        (flavour, common)
        for place in PLACES
        for flavour in place.glob("linux-headers-*")
        if (common := _common_of(flavour))
    ]
    if not pairs:
        raise LoadError(
            f"kernel headers: none for {running}, and none of another kernel in "
            f"{' or '.join(map(str, PLACES))}; run scripts/setup.sh, which unpacks some, or set "
            "BCC_KERNEL_SOURCE to a tree of them"
        )
    flavour, common = min(pairs, key=lambda pair: _distance(pair[0].name, running))
    of_place = hashlib.sha256(str(flavour.parent).encode()).hexdigest()[:12]
    return _merged(common, flavour, cache / of_place / flavour.name)


def _common_of(flavour: Path) -> Path | None:
    """The other half of a kernel's headers; None if this is no such half, or it is not there."""
    try:
        match = _COMMON.search((flavour / "Makefile").read_text())
    except OSError:
        return None
    if not match or not _NAME.fullmatch(flavour.name):
        return None
    common = flavour.parent / match[1]
    return common if (common / _MARK).exists() else None


def _distance(name: str, running: str) -> tuple[bool, int, int, list[int], str]:
    """How far these headers are from the running kernel; of one series the newest comes first."""
    match = _NAME.fullmatch(name)
    series = re.match(r"(\d+)\.(\d+)", running)
    assert match, f"{name} was matched before"
    major, minor = (int(series[1]), int(series[2])) if series else (0, 0)
    return (
        match["release"] != running,
        abs(int(match[2]) - major),
        abs(int(match[3]) - minor),
        [-int(number) for number in re.findall(r"\d+", match["release"])],
        name,
    )


def _merged(common: Path, flavour: Path, target: Path) -> Path:
    """The tree appears as a whole: several processes may make it at once, and one is as good as
    the other."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        made = Path(directory) / target.name
        for tree in (common, flavour):
            _link_all(tree, made)
        try:
            made.rename(target)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise LoadError(f"kernel headers: cannot make {target}: {e.strerror}") from e
    return target


def _link_all(tree: Path, into: Path) -> None:
    for base, _, files in os.walk(tree):
        directory = into / Path(base).relative_to(tree)
        directory.mkdir(parents=True, exist_ok=True)
        for name in files:
            link = directory / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(base) / name)


def main() -> int:
    """Are there any?"""
    with tempfile.TemporaryDirectory() as cache:
        try:
            find(Path(cache))
        except LoadError:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
