# SPDX-License-Identifier: GPL-2.0-only
"""The clients: each puts one kind of load on a guest for some seconds and says what it saw.

A client that ends in no time is ended, and has no reading: BenchError says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.bench.apps import readings
from colo_ebpf.bench.apps.readings import Reading
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import APPS, BUILT
from colo_ebpf.lab.workload import DICE

PATIENCE_S = 8.0  # beyond the seconds of the load
FILE_BYTES = 20_000_000
_NO_LIMIT = "1000000"  # of requests: the time ends it
_PROBE = 20  # requests of each client that tell how many fill the time
_BETWEEN_KEYS_S = 0.05
_FILES = BUILT / APPS
_BROKEN_OFF = (18, 28)  # curl: a part was transferred; the time was over


@dataclass(frozen=True, slots=True)
class Where:
    """A guest, as seen from a namespace."""

    namespace: str
    address: str


Run = Callable[[Where, float], Awaitable[Reading]]


@asynccontextmanager
async def process(where: Where, *argv: str, stdin: int) -> AsyncIterator[Process]:
    """A program in the client's namespace; it does not outlive the block."""
    started = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net=/run/netns/{where.namespace}", *argv),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                started.kill()
        await started.wait()


async def _tool(where: Where, limit_s: float, *argv: str, good: tuple[int, ...] = (0,)) -> str:
    """What it prints. BenchError if it fails, or has no end within its time."""
    name = Path(argv[0]).name
    async with process(where, *argv, stdin=asyncio.subprocess.DEVNULL) as tool:
        try:
            async with asyncio.timeout(limit_s):
                out, err = await tool.communicate()
        except TimeoutError as e:
            raise BenchError(f"{name}: no end within {limit_s:.0f} s") from e
    if tool.returncode not in good:
        told = (err or out).decode(errors="replace").strip()
        raise BenchError(f"{name}: {told[-200:]} (exit code {tool.returncode})")
    return out.decode(errors="replace")


# -- redis -------------------------------------------------------------------------------


def redis(command: str, clients: int, pipeline: int = 1) -> Run:
    """redis-benchmark takes a number of requests, no time: a probe finds out how many fit."""

    async def run(where: Where, seconds: float) -> Reading:
        limit_s = seconds + PATIENCE_S

        async def ask(requests: int) -> Reading:
            return readings.redis(
                await _tool(
                    where,
                    limit_s,
                    *("redis-benchmark", "-h", where.address, "-t", command, "--csv"),
                    *("--precision", "3", "-c", str(clients), "-P", str(pipeline)),
                    *("-n", str(requests)),
                )
            )

        least = _PROBE * clients * pipeline
        probe = await ask(least)
        more = int(probe.rate * seconds)
        return await ask(more) if more > least else probe

    return run


# -- web ---------------------------------------------------------------------------------


def web(scheme: str, clients: int, keep_alive: bool) -> Run:
    """ab, for one small page. Without keep-alive each request has a connection of its own."""

    async def run(where: Where, seconds: float) -> Reading:
        with tempfile.TemporaryDirectory(prefix="colo-bench-") as directory:
            shares = Path(directory) / "shares"
            said = await _tool(
                where,
                seconds + PATIENCE_S,
                *("ab", "-q", "-r", "-s", str(int(PATIENCE_S)), "-t", str(max(1, round(seconds)))),
                *("-n", _NO_LIMIT, "-c", str(clients), "-e", str(shares)),
                *(("-k",) if keep_alive else ()),
                f"{scheme}://{where.address}/index.html",
            )
            return readings.ab(said, shares.read_text() if shares.exists() else "")

    return run


def download() -> Run:
    """curl, one file after the other."""

    async def once(where: Where, limit_s: float) -> str:
        format_ = "%{size_download} %{time_total}\n"
        return await _curl(where, limit_s, format_, f"http://{where.address}/file")

    return _files(once)


def upload() -> Run:
    """curl, the same amount the other way."""

    async def once(where: Where, limit_s: float) -> str:
        format_ = "%{size_upload} %{time_total}\n"
        with tempfile.NamedTemporaryFile(prefix="colo-bench-") as file:
            file.write(os.urandom(FILE_BYTES))
            file.flush()
            url = f"http://{where.address}/upload/file"
            return await _curl(where, limit_s, format_, "-T", file.name, url)

    return _files(once)


async def _curl(where: Where, limit_s: float, format_: str, *what: str) -> str:
    return await _tool(
        where,
        limit_s + PATIENCE_S,
        *("curl", "-s", "-o", "/dev/null", "--max-time", f"{limit_s:.1f}", "-w", format_, *what),
        good=(0, *_BROKEN_OFF),
    )


def _files(once: Callable[[Where, float], Awaitable[str]]) -> Run:
    async def run(where: Where, seconds: float) -> Reading:
        until, said = time.monotonic() + seconds, ""
        while not said or time.monotonic() < until:
            said += await once(where, seconds + PATIENCE_S)
        return readings.transfers(said)

    return run


# -- database ----------------------------------------------------------------------------


def database(clients: int, only_select: bool) -> Run:
    """pgbench: TPC-B, or a look-up by key."""

    async def run(where: Where, seconds: float) -> Reading:
        with tempfile.TemporaryDirectory(prefix="colo-bench-") as directory:
            said = await _tool(
                where,
                seconds + PATIENCE_S,
                *(str(_FILES / "pgbench"), "-h", where.address, "-U", "postgres", "-n", "-l"),
                *(f"--log-prefix={directory}/log", "-T", str(max(1, round(seconds)))),
                *("-c", str(clients), *(("-S",) if only_select else ()), "bench"),
            )
            logs = [file.read_text() for file in Path(directory).iterdir()]
            return readings.pgbench(said, "".join(logs))

    return run


# -- login -------------------------------------------------------------------------------


def _ssh(where: Where) -> list[str]:
    options = ("BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={_FILES}/known_hosts")
    return [
        *("ssh", "-F", "none", "-i", str(_FILES / "id_ed25519")),
        *(word for option in options for word in ("-o", option)),
        f"root@{where.address}",
    ]


async def login(where: Where, seconds: float) -> Reading:
    """`ssh guest true`, one after the other."""
    since, times_ms = time.monotonic(), list[float]()
    while (began := time.monotonic()) < since + seconds:
        await _tool(where, seconds + PATIENCE_S, *_ssh(where), "true")
        times_ms.append((time.monotonic() - began) * 1000)
    return readings.of_times(times_ms, time.monotonic() - since)


async def typing(where: Where, seconds: float) -> Reading:
    """Characters typed at an open session, one after the other; each until its echo is there."""
    argv = [*_ssh(where)[:-1], "-tt", _ssh(where)[-1], "cat"]
    async with process(where, *argv, stdin=asyncio.subprocess.PIPE) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        try:
            await _echo_ms(ssh.stdin, ssh.stdout)  # the session is open
            since, times_ms = time.monotonic(), list[float]()
            while time.monotonic() < since + seconds:
                await asyncio.sleep(_BETWEEN_KEYS_S)
                times_ms.append(await _echo_ms(ssh.stdin, ssh.stdout))
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as e:
            raise BenchError(f"ssh: a character has no echo within {PATIENCE_S:.0f} s") from e
    return readings.of_times(times_ms, time.monotonic() - since)


async def _echo_ms(keys: asyncio.StreamWriter, screen: asyncio.StreamReader) -> float:
    began = time.monotonic()
    keys.write(b"x")
    async with asyncio.timeout(PATIENCE_S):
        await screen.readexactly(1)
    return (time.monotonic() - began) * 1000


# -- dice --------------------------------------------------------------------------------


def dice(clients: int) -> Run:
    """Every answer differs in the two VMs."""

    async def run(where: Where, seconds: float) -> Reading:
        client = Client(where.namespace, where.address)
        times_ms: list[float] = []
        try:
            async with asyncio.timeout(seconds + PATIENCE_S):
                players = [Lines(await client.connect(DICE)) for _ in range(clients)]
                since = time.monotonic()
                work = (_roll(one, since + seconds, times_ms) for one in players)
                await asyncio.gather(*work)
                took_s = time.monotonic() - since
        except (TimeoutError, OSError) as e:
            raise BenchError(f"dice: no end within {seconds + PATIENCE_S:.0f} s") from e
        for one in players:
            one.close()
        return readings.of_times(times_ms, took_s)

    return run


async def _roll(lines: Lines, until: float, times_ms: list[float]) -> None:
    while (began := time.monotonic()) < until:
        await lines.ask("ROLL")
        times_ms.append((time.monotonic() - began) * 1000)
