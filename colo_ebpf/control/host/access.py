# SPDX-License-Identifier: GPL-2.0-only
"""What a QEMU's user may open: entries of its own in the lists of access (acl(5)).

Whose a file is stays as it was: root's, as the daemon, which is bound to file modes, needs it.
Nothing is done for a file that its mode opens to that user already.
"""

from __future__ import annotations

import grp
import os
import subprocess
from pathlib import Path

from colo_ebpf.control.host.capabilities import User
from colo_ebpf.errors import VmError

_TIMEOUT_S = 10


def may(user: User, found: os.stat_result, rights: str) -> bool:
    """Its mode alone says so. `rights`: of `r`, `w` and `x`."""
    if found.st_uid == user.uid:
        bits = found.st_mode >> 6
    elif found.st_gid in (user.gid, *user.groups):
        bits = found.st_mode >> 3
    else:
        bits = found.st_mode
    return all(bits & {"r": 4, "w": 2, "x": 1}[right] for right in rights)


def grant(path: Path, user: User | None, rights: str = "rw") -> None:
    """From now on the user may. VmError if that cannot be said, with what to do."""
    if user is None:
        return
    try:
        if may(user, path.stat(), rights):
            return
    except OSError as e:
        raise VmError(f"{path}: {e.strerror}") from e
    failure = _setfacl(path, f"u:{user.uid}:{rights}")
    if failure:
        raise VmError(
            f"{path}: QEMU, which is user {user.uid}, cannot be allowed to open it: {failure}; "
            f"give it a group that has that user, and chmod g+{rights}"
        )


def grant_group(path: Path, group: str) -> None:
    """Its members may, if there is such a group. VmError."""
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return
    if failure := _setfacl(path, f"g:{gid}:rw"):
        raise VmError(f"{path}: group {group} cannot be let in: {failure}")


def _setfacl(path: Path, entry: str) -> str:
    """What went wrong ("": nothing)."""
    try:
        done = subprocess.run(
            ["setfacl", "-m", entry, str(path)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return "setfacl is not installed (package acl)"
    except subprocess.TimeoutExpired:
        return f"setfacl does not end within {_TIMEOUT_S} s"
    return done.stderr.strip() if done.returncode else ""


def make(path: Path, user: User | None) -> None:
    """An empty file that QEMU writes and nobody else reads. VmError if it cannot be made."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    except OSError as e:
        raise VmError(f"cannot write {path}: {e.strerror}") from e
    grant(path, user)


def closed_way(path: Path, *, write: bool) -> str:
    """Why the calling process cannot open the path ("": it can): for QEMU's user to ask."""
    for parent in reversed(path.absolute().parents):
        if not os.access(parent, os.X_OK):
            return f"cannot enter {parent}: chmod o+x {parent}, or use a place outside of it"
    if not os.access(path, os.R_OK | (os.W_OK if write else 0)):
        return f"cannot open it: chmod o+{'rw' if write else 'r'} {path}"
    return ""
