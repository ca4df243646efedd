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

from colo_ebpf.control.decision.record import Record, cold, decode, encode, sealed
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ArbiterError, SwapUnknownError

KEPT_GENERATIONS = 16
_MAX_BLOCKED = 4
_NO_TAKEOVER = "no takeover can be written down"
_NAME = re.compile(r"gen-(\d{1,18})")
_DRAFT = re.compile(r"\.(\d{1,18})-[0-9a-f]+\.tmp")
_T = TypeVar("_T")


class FileArbiter:
    """`interfaces.Arbiter` on a directory. One VM per directory."""

    def __init__(self, directory: Path, timeout_ms: int, host: str = "") -> None:
        self._dir = directory
        self._spare = directory / f".spare-{host}" if host else None
        self._timeout_s = timeout_ms / 1000
        self._blocked = 0

    async def read(self) -> Record:
        """The newest record; raises ArbiterError if there is none or it cannot be read."""
        try:
            return await self._in_time(self._read)
        except TimeoutError as e:
            raise ArbiterError(
                f"{self._dir} did not answer within {self._timeout_s} s: is its server reachable?"
            ) from e

    async def swap(self, old: Record, new: Record) -> Record:
        """See port Arbiter. A swap that is late is read back by its nonce first.

        Raises SwapUnknownError if that cannot be learnt in time.
        """
        mine = sealed(new, secrets.token_hex(8))
        try:
            return await self._in_time(lambda: self._swap(old, mine))
        except TimeoutError as late:
            with contextlib.suppress(ArbiterError, TimeoutError):
                newest = await self._in_time(self._newest)
                if newest.generation >= mine.generation:
                    return newest
            raise SwapUnknownError(
                f"{self._dir} did not answer within {self._timeout_s} s: whether generation "
                f"{mine.generation} was written is not known yet"
            ) from late

    async def init(self, host: str) -> Record:
        """Write generation 1, cold at `host`; raises ArbiterError if there is a record."""
        try:
            return await self._in_time(lambda: self._init(host))
        except TimeoutError as e:
            raise ArbiterError(f"{self._dir} did not answer within {self._timeout_s} s") from e

    async def check(self) -> None:
        """A new record would find its room. Leaves the last threads to those who write one."""
        try:
            await self._in_time(self._checked, _MAX_BLOCKED - 2)
        except TimeoutError as e:
            raise ArbiterError(f"{self._dir} did not answer within {self._timeout_s} s") from e

    async def examine(self) -> Record:
        """There is one way to it."""
        try:
            return await self._in_time(self._checked)
        except TimeoutError as e:
            raise ArbiterError(f"{self._dir} did not answer within {self._timeout_s} s") from e

    def _checked(self) -> Record:
        newest = self._newest()
        if not os.access(self._dir, os.W_OK):
            raise ArbiterError(f"cannot write in {self._dir}: {_NO_TAKEOVER}")
        self._reserve()
        if self._spare is not None and not self._spare.exists():
            raise ArbiterError(f"no room for another record in {self._dir}: {_NO_TAKEOVER}")
        return newest

    def _read(self) -> Record:
        newest = self._newest()
        self._reserve()
        return newest

    def _init(self, host: str) -> Record:
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise ArbiterError(f"cannot make the arbiter's directory {self._dir}: {e}") from e
        if self._generations():
            raise ArbiterError(
                f"{self._dir} holds a record already ({self._newest().describe()}); "
                "`arbiter replace` writes another one"
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
        self._reserve()
        return newest

    def _publish(self, record: Record) -> None:
        """Give a whole, synced file the name of its generation, if that is free.

        Before the link a failure is known to have written nothing; from then on it is not.
        """
        temporary = self._dir / f".{record.generation}-{record.nonce}.tmp"
        try:
            self._draft(temporary, encode(record))
        except OSError as e:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise ArbiterError(f"cannot write in {self._dir}: {e.strerror}: {_NO_TAKEOVER}") from e
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._dir / f"gen-{record.generation}")
            atomic.sync_directory(self._dir)
            temporary.unlink()
        except OSError as e:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise SwapUnknownError(
                f"cannot finish writing generation {record.generation} in {self._dir}: {e}"
            ) from e

    def _draft(self, temporary: Path, data: bytes) -> None:
        """In the file that was made for it while there was room, if there is one."""
        if self._spare is not None:
            with contextlib.suppress(FileNotFoundError):
                self._spare.rename(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data.ljust(atomic.PLACE_BYTES), 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _reserve(self) -> None:
        """The room of the next record, which may decide who serves. Without it that one takes what
        there is then."""
        if self._spare is None or self._spare.exists():
            return
        draft = self._spare.with_suffix(".new")
        try:
            with draft.open("wb") as file:
                file.write(bytes(atomic.PLACE_BYTES))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._spare)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()

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
            for draft in map(_DRAFT.fullmatch, os.listdir(self._dir)):  # of writers that died
                if draft and int(draft[1]) <= newest - KEPT_GENERATIONS:
                    (self._dir / draft[0]).unlink(missing_ok=True)

    async def _in_time(self, work: Callable[[], _T], most: int = _MAX_BLOCKED) -> _T:
        """Run blocking `work` in a thread of its own, which may be left behind hanging."""
        if self._blocked >= most:
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
