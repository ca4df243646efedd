# SPDX-License-Identifier: GPL-2.0-only
"""How long a client waits when the SVM falls silent and only a timeout can tell.

Ours: everything the SVM sends is dropped on its host, before the data plane sees it; a client
that works on an established connection waits for the compare timeout and the checkpoint. QEMU's:
`colo-compare` alone, with its own defaults, from the primary's segment until it asks for a
checkpoint; what that takes comes on top.
"""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from colo_ebpf.bench.kernel.qemu_compare import QemuCompare
from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.client import Lines
from colo_ebpf.lab.topology import LINK_DEVICE, Place
from colo_ebpf.lab.workload import ECHO, until_serving

PART, MEASURE = "control", "stall when the SVM is silent"
_DROP_IPV4 = "4,40 0 0 12,21 0 1 2048,6 0 0 2,6 0 0 0,"  # classic BPF: TC_ACT_SHOT, TC_ACT_OK
_QEMU_LIMIT_S = 30.0
_SYN, _ACK, _PSH = 0x02, 0x10, 0x08


@contextmanager
def silent(place: Place) -> Iterator[None]:
    """Nothing that the VM on this host sends reaches the other; beacons and ARP do.

    The programs of the tap come before any filter there: what is dropped is what they send over
    the link. Raises BenchError: if tc refuses.
    """
    where = ("dev", LINK_DEVICE, "egress", "pref", "1")
    _tc(place, "qdisc", "replace", "dev", LINK_DEVICE, "clsact")
    _tc(place, "filter", "add", *where, "bpf", "da", "bytecode", _DROP_IPV4)
    try:
        yield
    finally:
        _tc(place, "filter", "del", *where)


def _tc(place: Place, *words: str) -> None:
    enter = ("nsenter", f"--net=/run/netns/{place.namespace}")
    done = subprocess.run(
        [*enter, "tc", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        what = f"tc {words[0]} {words[1]} on {LINK_DEVICE} of {place.host}"
        raise BenchError(f"{what}: {done.stderr.strip()}")


async def ours(recorder: Recorder, pair: Pair, count: int) -> None:
    """Echoes on one connection, each with the SVM silent until the client has its answer."""
    client, host = pair.client(), await asyncio.to_thread(pair.serving)
    await until_serving(client)
    lines = Lines(await client.connect(ECHO))
    place = pair.lab.places[host].other
    await lines.ask("before")
    try:
        values = [await _stall_ms(lines, place, str(n)) for n in range(count)]
    finally:
        lines.close()
    note = "client's wait for an answer, defaults"
    recorder.add(PART, MEASURE, "ours", "ms", values=values, note=note)


async def _stall_ms(lines: Lines, place: Place, text: str) -> float:
    with silent(place):
        since = time.monotonic()
        if await lines.ask(text) != text:
            raise BenchError("the echo is another one")
        took_s = time.monotonic() - since
    await lines.ask("between")  # both speak again
    return took_s * 1000


def qemu(recorder: Recorder, count: int) -> None:
    """Several at once: each one only waits."""
    with ThreadPoolExecutor(count) as pool:
        values = list(pool.map(_qemu_stall_ms, range(count)))
    note = "QEMU's defaults, until it asks for a checkpoint"
    recorder.add(PART, MEASURE, "qemu", "ms", values=values, note=note)


def _qemu_stall_ms(number: int) -> float:
    with (
        tempfile.TemporaryDirectory(prefix="colo-bench-") as directory,
        QemuCompare(Path(directory)) as compare,
    ):
        for side in (compare.primary, compare.secondary):
            side(segment(1000, _SYN | _ACK))
            side(segment(1001, _ACK))
        compare.released()
        time.sleep(random.Random(number).random())  # anywhere between two scans
        compare.checkpoints_wanted()
        since = time.monotonic()
        compare.primary(segment(1001, _ACK | _PSH, b"only the primary says this"))
        compare.until_checkpoint(_QEMU_LIMIT_S)
        return (time.monotonic() - since) * 1000


def segment(seq: int, flags: int, data: bytes = b"") -> bytes:
    """An Ethernet frame of the VM; `colo-compare` looks at no checksum."""
    ether = bytes.fromhex("020000000001525400770010") + b"\x08\x00"
    tcp = struct.pack("!HHIIBBHHH", 80, 40000, seq, 5001, 5 << 4, flags, 65535, 0, 0)
    total = 20 + len(tcp) + len(data)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, 0, 64, 6, 0)
    return ether + ip + bytes((192, 0, 2, 10, 192, 0, 2, 1)) + tcp + data
