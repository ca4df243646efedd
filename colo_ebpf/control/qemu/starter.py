# SPDX-License-Identifier: GPL-2.0-only
"""Starts QEMU as a user of its own, without the right to become another.

Before the daemon has read a key or loaded a program it forks this process, which becomes QEMU's
user for good. It starts QEMUs and does for the daemon what only their user may; whoever breaks out
of QEMU and takes it over gains nothing by that. It ends with the daemon. Where QEMU is root the
daemon does it all itself.

Requests are one packet of JSON each on a socket pair; descriptors come along.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colo_ebpf.control.host import access
from colo_ebpf.control.host.capabilities import User, become
from colo_ebpf.control.qemu import hangup
from colo_ebpf.errors import ControlError, VmError

NAME = "colo-starter"  # of the process, where its command line is the daemon's
_PR_SET_NAME = 15
_REQUEST_BYTES = 180_000  # what a socket takes at once
_MOST_FDS = 160  # of eight NICs with vhost, eight queues each, and a few more
_IGNORED = ("CHLD", "INT", "PIPE", "TERM", "XFSZ")  # by this process or by Python
_ASIDE = 500  # descriptors from here on are nobody's; a process may have 1024
_ANSWER_S = 10.0


def _spawn(argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
    """A process in a session of its own. `fds`: its numbers, and the descriptors here."""
    aside = {n: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE) for n, fd in fds.items()}
    try:
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in aside.items()]
        ignored = [getattr(signal, f"SIG{name}") for name in _IGNORED]
        return os.posix_spawnp(
            argv[0], list(argv), env, file_actions=actions, setsid=True, setsigdef=ignored
        )
    finally:
        for fd in aside.values():
            os.close(fd)


def _closed_ways(paths: Sequence[tuple[str, bool]]) -> list[str]:
    ways = [(path, access.closed_way(Path(path), write=write)) for path, write in paths]
    return [f"{path}: {why}" for path, why in ways if why]


class Starter:
    """The daemon's end. `begin` for another user than root."""

    def __init__(self, user: User | None = None, to: socket.socket | None = None) -> None:
        self._user, self._to = user, to
        self._lock = asyncio.Lock()

    @classmethod
    def begin(cls, user: User | None) -> Starter:
        """Fork; to be called while this process has one thread and no secrets. ControlError if it
        may not become that user."""
        if user is None:
            return cls()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            ours.close()
            _live(theirs, user)
        theirs.close()
        ours.settimeout(_ANSWER_S)
        started = cls(user, ours)
        try:
            started._ask({"do": "hello"})
        except VmError as e:
            raise ControlError(
                f"QEMU cannot be user {user.uid}: {e}; the daemon needs CAP_SETUID and CAP_SETGID "
                "when it starts"
            ) from e
        return started

    @property
    def user(self) -> User | None:
        """Who QEMU is; None: root."""
        return self._user

    def close(self) -> None:
        """The process ends; QEMUs go on."""
        if self._to is not None:
            self._to.close()

    async def start(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int]
    ) -> int:
        """Returns the pid of a process that runs `argv` with these descriptors. OSError if it
        cannot be run, VmError if nobody is there who could."""
        if self._to is None:
            return _spawn(argv, env, fds)
        request = {"do": "start", "argv": list(argv), "env": dict(env), "numbers": list(fds)}
        pid = int(await self._locked(request, tuple(fds.values())))
        if Path(f"/proc/{pid}").exists() and _owner(pid) != self._user:
            raise VmError(f"process {pid} is none that runs as QEMU's user")
        return pid

    async def hang_up(self, pid: int, port: int) -> dict[int, str]:
        """See `hangup.hang_up`."""
        if self._to is None or _uid(pid) == os.geteuid():  # of a daemon before this one
            return hangup.hang_up(pid, port)
        found = await self._locked({"do": "hang-up", "pid": pid, "port": port})
        return {int(fd): str(what) for fd, what in found.items()}

    async def closed(self, pid: int, connections: Mapping[int, str]) -> bool:
        """See `hangup.closed`."""
        if self._to is None or not connections or _uid(pid) == os.geteuid():
            return hangup.closed(pid, connections)
        request = {"do": "closed", "pid": pid, "connections": list(connections.items())}
        return bool(await self._locked(request))

    async def closed_ways(self, paths: Sequence[tuple[Path, bool]]) -> list[str]:
        """Which of the paths QEMU's user cannot open, a sentence each; with them: for writing."""
        if self._to is None:
            return []
        asked = [(str(path), write) for path, write in paths]
        return [str(one) for one in await self._locked({"do": "closed-ways", "paths": asked})]

    async def _locked(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> Any:
        async with self._lock:
            return await asyncio.to_thread(self._ask, request, fds)

    def _ask(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> Any:
        assert self._to is not None
        data = json.dumps(request).encode()
        if len(data) > _REQUEST_BYTES:
            raise VmError("QEMU's command line is too long")
        try:
            socket.send_fds(self._to, [data], fds)
            reply = json.loads(self._to.recv(_REQUEST_BYTES) or b"{}")
        except (OSError, ValueError, RecursionError) as e:
            raise VmError(f"the process that starts QEMU does not answer: {e}") from e
        if "errno" in reply:
            raise OSError(int(reply["errno"]), os.strerror(int(reply["errno"])))
        if "ok" not in reply:
            what = str(reply.get("error", "it is gone: restart the daemon"))
            raise VmError(f"the process that starts QEMU: {what}")
        return reply["ok"]


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _owner(pid: int) -> User | None:
    """Of a process, all four of its ids alike; None if they are not."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    ids: dict[str, set[int]] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if name in ("Uid", "Gid", "Groups"):
            ids[name] = {int(word) for word in rest.split()}
    if len(ids["Uid"]) != 1 or len(ids["Gid"]) != 1:
        return None
    return User(ids["Uid"].pop(), ids["Gid"].pop(), tuple(sorted(ids["Groups"])))


# -- the process ------------------------------------------------------------------------------


def _live(asker: socket.socket, user: User) -> None:
    """Never returns."""
    try:
        _let_go_of_all_but(asker)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):  # it ends with the daemon, not before
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for QEMUs
        os.umask(0o077)
        failure = ""
        try:
            become(user)
        except OSError as e:
            failure = str(e.strerror)
        while _serve_one(asker, failure):
            pass
    finally:
        os._exit(0)


def _let_go_of_all_but(asker: socket.socket) -> None:
    for link in Path("/proc/self/fd").iterdir():
        number = int(link.name)
        if number > 2 and number != asker.fileno():
            try:
                os.close(number)
            except OSError:
                continue  # the directory's own


def _serve_one(asker: socket.socket, failure: str) -> bool:
    """One request. False: the daemon is gone."""
    data, fds, _, _ = socket.recv_fds(asker, _REQUEST_BYTES, _MOST_FDS)
    if not data:
        return False
    try:
        answer: dict[str, Any] = {"error": failure} if failure else {"ok": _do(data, fds)}
    except OSError as e:
        answer = {"errno": e.errno}
    except VmError as e:
        answer = {"error": str(e)}
    finally:
        for fd in fds:
            os.close(fd)
    asker.send(json.dumps(answer).encode())
    return True


def _do(data: bytes, fds: Sequence[int]) -> Any:
    asked = json.loads(data)
    match asked["do"]:
        case "start":
            given = dict(zip(asked["numbers"], fds, strict=True))
            return _spawn(asked["argv"], asked["env"], given)
        case "hang-up":
            return hangup.hang_up(asked["pid"], asked["port"])
        case "closed":
            return hangup.closed(asked["pid"], dict(asked["connections"]))
        case "closed-ways":
            return _closed_ways(asked["paths"])
    return ""
