# SPDX-License-Identifier: GPL-2.0-only
"""Images that were compiled on this host, in files: what did not change is compiled once.

A file is named by the digest of its source, then by the bcc that compiled it; it holds a SHA-256 of
the rest, then the source's digest and the image. Root will run what is read here in the kernel: so
nothing is read that others could have written, and what is damaged is compiled anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from colo_ebpf.datapath.bpf import compiler, image
from colo_ebpf.datapath.bpf.image import Image, Source
from colo_ebpf.errors import LoadError

_log = logging.getLogger(__name__)
_SUM_BYTES = 32
_DIGEST_BYTES = 32
_MOST_BYTES = 16 << 20
_MOST_FILES = 64
_LOCK = "lock"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def distrusted(status: os.stat_result) -> str:
    """Why root may not believe what is there; empty if only root can have written it."""
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & 0o022:
        return "others may write to it"
    return ""


class Kept:
    """The files of one directory. Without one that can be used all is compiled: never an error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._usable = self._made()

    def _made(self) -> bool:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            both = self._directory, self._directory.parent
            why = next(filter(None, (distrusted(one.lstat()) for one in both)), "")
        except OSError as e:
            why = e.strerror or str(e)
        if why:
            _log.warning("%s: %s: what is compiled is not kept", self._directory, why)
        return not why

    def find(self, source: Source) -> Image | None:
        """Of this source, by the bcc that is installed, or by any if none is."""
        if not self._usable:
            return None
        for path in sorted(self._directory.glob(f"{source.digest}-{compiler.version() or '*'}")):
            try:
                found = _read(path, source.digest)
            except (OSError, LoadError) as e:
                _log.warning("%s: compiled anew", f"{path}: {e}" if isinstance(e, LoadError) else e)
                continue
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
        return None

    def keep(self, source: Source, made: Image) -> None:
        """Write it down; those not used for longest go."""
        if not self._usable:
            return
        body = source.digest.encode() + image.encode(made)
        path = self._directory / f"{source.digest}-{compiler.version()}"
        new = self._directory / f".{source.digest}-{os.getpid()}.new"
        try:
            with os.fdopen(os.open(new, _CREATE, 0o600), "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
            new.replace(path)
            self._bound()
        except OSError as e:
            _log.warning("%s: %s: what was compiled is not kept", path, e.strerror)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _bound(self) -> None:
        files = [path for path in self._directory.iterdir() if path.is_file()]
        images = [path for path in files if path.name != _LOCK]
        images.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in images[:-_MOST_FILES]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One daemon of this host compiles at a time: what the others want may be the same."""
        if not self._usable:
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context((self._directory / _LOCK).open("ab"))
                _wait_for(lock)
            except OSError as e:
                _log.warning("%s: %s: compiled at once", self._directory / _LOCK, e.strerror)
            yield


def _wait_for(lock: IO[bytes]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.info("waiting for another daemon of this host, which compiles")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _read(path: Path, digest: str) -> Image:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise LoadError("no file of ours")
        if why := distrusted(status):
            raise LoadError(why)
        data = file.read(_MOST_BYTES)
    body = data[_SUM_BYTES:]
    if hashlib.sha256(body).digest() != data[:_SUM_BYTES]:
        raise LoadError("it is damaged")
    if body[:_DIGEST_BYTES] != digest.encode():
        raise LoadError("it is of another source")
    return image.decode(body[_DIGEST_BYTES:])
