# SPDX-License-Identifier: GPL-2.0-only
"""The embedded arbiter: one file per generation in a directory that both hosts reach.

`link()` is the compare-and-swap: it gives a complete, synced file the name ``gen-N`` or fails
because the name is taken. A crash at any point leaves either no ``gen-N`` or a whole one (a
create-then-write would leave an empty one, owned by nobody). What link() answered is never
believed, since a retransmitted NFS request answers EEXIST to its own winner: the newest file is
read back and its nonce tells.

The highest N is the record. Older generations are removed, all but a few; a late writer whose
name was removed meanwhile makes a file that is not the highest and therefore means nothing.
On NFS mount with ``hard,noac,lookupcache=none``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from colo_ebpf.control.ports import SwapUnknown
from colo_ebpf.control.record import Record, cold, decode, encode, sealed
from colo_ebpf.errors import ArbiterError

KEPT_GENERATIONS = 16
_MAX_BLOCKED = 4
_NAME = re.compile(r"gen-(\d{1,18})")
_T = TypeVar("_T")


class FileArbiter:
    """port Arbiter on a directory. One VM per directory."""

    def __init__(self, directory: Path, timeout_ms: int) -> None:
        self._dir = directory
        self._timeout_s = timeout_ms / 1000
        self._blocked = 0

    async def read(self) -> Record:
        """The newest record; raises ArbiterError if there is none or it cannot be read."""
        try:
            return await self._in_time(self._newest)
        except TimeoutError as e:
            raise ArbiterError(
                f"{self._dir} did not answer within {self._timeout_s} s: is its server reachable?"
            ) from e

    async def swap(self, old: Record, new: Record) -> Record:
        """See port Arbiter. A swap that is late is read back by its nonce first."""
        mine = sealed(new, secrets.token_hex(8))
        try:
            return await self._in_time(lambda: self._swap(old, mine))
        except TimeoutError as late:
            with contextlib.suppress(ArbiterError, TimeoutError):
                newest = await self._in_time(self._newest)
                if newest.generation >= mine.generation:
                    return newest
            raise SwapUnknown(
                f"{self._dir} did not answer within {self._timeout_s} s: whether generation "
                f"{mine.generation} was written is not known yet"
            ) from late

    async def init(self, host: str) -> Record:
        """Write generation 1, cold at `host`; raises ArbiterError if there is a record."""
        try:
            return await self._in_time(lambda: self._init(host))
        except TimeoutError as e:
            raise ArbiterError(f"{self._dir} did not answer within {self._timeout_s} s") from e

    async def examine(self) -> Record:
        """There is one way to it."""
        return await self.read()

    def _init(self, host: str) -> Record:
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise ArbiterError(f"cannot make the arbiter's directory {self._dir}: {e}") from e
        if self._generations():
            raise ArbiterError(
                f"{self._dir} holds a record already ({self._newest().describe()}); it is "
                "changed by the daemons only"
            )
        mine = sealed(cold(host), secrets.token_hex(8))
        self._publish(mine)
        return self._newest()

    def _swap(self, old: Record, mine: Record) -> Record:
        newest = self._newest()
        if (newest.generation, newest.nonce) != (old.generation, old.nonce):
            return newest
        self._publish(mine)
        newest = self._newest()
        self._prune(newest.generation)
        return newest

    def _publish(self, record: Record) -> None:
        """Give a whole, synced file the name of its generation, if that is free.

        Before the link a failure is known to have written nothing; from then on it is not.
        """
        temporary = self._dir / f".{record.nonce}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(encode(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise ArbiterError(f"cannot write in {self._dir}: {e}") from e
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._dir / f"gen-{record.generation}")
            self._sync_directory()
            temporary.unlink()
        except OSError as e:
            raise SwapUnknown(
                f"cannot finish writing generation {record.generation} in {self._dir}: {e}"
            ) from e

    def _sync_directory(self) -> None:
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _generations(self) -> list[int]:
        try:
            names = os.listdir(self._dir)
        except OSError as e:
            raise ArbiterError(
                f"cannot read the arbiter's directory {self._dir}: {e}; is it mounted, and was "
                "`colo-ebpf arbiter init` run once?"
            ) from e
        return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)

    def _newest(self) -> Record:
        for _ in range(3):  # a listing may be older than a concurrent prune
            generations = self._generations()
            if not generations:
                raise ArbiterError(
                    f"no record in {self._dir}: run `colo-ebpf arbiter init` once, when no VM of "
                    "this name runs anywhere"
                )
            path = self._dir / f"gen-{generations[-1]}"
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as e:
                raise ArbiterError(f"cannot read {path}: {e}") from e
            record = decode(text, str(path))
            if record.generation != generations[-1]:
                raise ArbiterError(f"{path} holds generation {record.generation}")
            return record
        raise ArbiterError(f"{self._dir} changes faster than it can be read")

    def _prune(self, newest: int) -> None:
        """Remove generations long past; the newest ones stay, whoever wrote them."""
        with contextlib.suppress(OSError, ArbiterError):
            for generation in self._generations():
                if generation <= newest - KEPT_GENERATIONS:
                    (self._dir / f"gen-{generation}").unlink(missing_ok=True)

    async def _in_time(self, work: Callable[[], _T]) -> _T:
        """Run blocking `work` in a thread of its own, which may be left behind hanging."""
        if self._blocked >= _MAX_BLOCKED:
            raise ArbiterError(f"{self._dir} does not answer: {self._blocked} requests hang in it")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()
        self._blocked += 1

        def finish(result: _T | None, error: BaseException | None) -> None:
            self._blocked -= 1
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def body() -> None:
            result: _T | None = None
            error: BaseException | None = None
            try:
                result = work()
            except Exception as e:
                error = e
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, result, error)

        threading.Thread(target=body, name="arbiter", daemon=True).start()
        async with asyncio.timeout(self._timeout_s):
            return await done
