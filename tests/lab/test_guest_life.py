# SPDX-License-Identifier: GPL-2.0-only
"""The guest reboots, panics, powers itself off; QEMU is told to end behind the daemon's back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from qemu.qmp import ExecInterruptedError, QMPClient

from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.lab import LIFE, clean, cli

MONITOR = "qemu/operator.sock"


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """One pair, which each test leaves protected and serving. Its QEMUs have a monitor for us."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotestl"))
    try:
        lab.build(choose(Wanted()))
        for place in lab.places.values():
            monitor = f"unix:{place.run_dir}/{MONITOR},server=on,wait=off"
            text = place.config.read_text()
            assert "[vm]\n" in text
            extra = f"[vm]\nextra-args = {json.dumps(['-qmp', monitor])}\n"
            place.config.write_text(text.replace("[vm]\n", extra))
            lab.start_daemon(place)
        lab.wait_protected()
        yield lab
    finally:
        lab.down()


# --- what an operator and a client can see and do -------------------------------------------


def _status(lab: Lab, host: str) -> dict[str, Any]:
    return dict(json.loads(cli(lab, host, "status", "--json").stdout))


def _primary(lab: Lab) -> str:
    (host,) = [host for host in HOSTS if (lab.ask(host) or {}).get("role") == "primary"]
    return host


def _other(host: str) -> str:
    return "b" if host == "a" else "a"


def _history(lab: Lab, host: str) -> list[str]:
    return [row["sentence"] for row in lab.ask(host, "history")]


def _vm(lab: Lab, host: str) -> int:
    (pid,) = processes.pids_of(lab.places[host].namespace, "vm")
    return pid


def _qmp(lab: Lab, host: str, command: str) -> None:
    """The operator's word to QEMU, which the daemon does not hear of."""

    async def say() -> None:
        client = QMPClient("operator")
        await client.connect(str(lab.places[host].run_dir / MONITOR))
        with contextlib.suppress(EOFError, ExecInterruptedError):  # `quit` may end QEMU before
            await client.execute(command)
            await client.disconnect()

    asyncio.run(say())


def _client(lab: Lab) -> Client:
    return Client(lab.namespace_of("client"), lab.guest_address)


def _tell(lab: Lab, word: str) -> None:
    """The guest acts and answers nothing: the connection stays until its daemon has seen it."""
    (host,) = [host for host in HOSTS if (lab.ask(host) or {}).get("role") in ("primary", "solo")]
    told = len(_history(lab, host))

    def seen() -> bool:
        """A second panic within ten seconds is no second line."""
        said = any("the guest" in line for line in _history(lab, host)[told:])
        return said or bool(lab.ask(host)["guest"]["panicked"])

    async def say() -> None:
        await until_serving(_client(lab))
        with await _client(lab).connect(LIFE) as s:
            await asyncio.get_running_loop().sock_sendall(s, word.encode() + b"\n")
            async with asyncio.timeout(PATIENCE_S):
                while not seen():
                    await asyncio.sleep(0.05)

    asyncio.run(say())


async def _append(lines: Lines) -> int:
    """The next entry; what the ledger holds then."""
    async with asyncio.timeout(PATIENCE_S):
        count = int((await lines.ask("SUM")).split()[1]) + 1
        reply = await lines.ask(f"ADD {count} entry")
    assert reply.startswith(f"OK {count} ")
    return count


def _serves(lab: Lab, at_least: int = 0) -> int:
    """A new connection is served, and its disk has all it had; the ledger's count."""

    async def ask() -> int:
        await until_serving(_client(lab))
        lines = Lines(await _client(lab).connect(LEDGER))
        count = await _append(lines)
        lines.close()
        return count

    count = asyncio.run(ask())
    assert count > at_least
    return count


def _compared(lab: Lab, host: str) -> int:
    """Packets of the VM here that left because the other VM sent the same."""
    rows = json.loads(cli(lab, host, "counters", "--json").stdout)
    return sum(int(row["packets"]) for row in rows if row["reason"] in ("verified", "carried"))


def _lives_on(lab: Lab, act: Callable[[str], object], says: str) -> None:
    """What `act` does to the guest of the primary is no end of the pair."""
    count = _serves(lab)
    lab.wait_protected()  # while the guest boots the hosts are busiest, and one may miss the other
    host = _primary(lab)
    before = _status(lab, host)
    act(host)
    lab.wait(lambda: says in _history(lab, host), f"{host} does not say {says!r}", 60)
    count = _serves(lab, count)
    lab.wait_protected()
    compared = _compared(lab, host)
    _serves(lab, count)
    after = _status(lab, host)
    assert after["record"]["generation"] == before["record"]["generation"], "nobody went solo"
    assert (after["role"], after["guest"]["powered_off"]) == ("primary", False)
    reasons = [
        status["checkpoints"]["by_cause"].get("guest-reset", 0) for status in (before, after)
    ]
    assert reasons[1] > reasons[0]
    assert _compared(lab, host) > compared, "new connections are compared"


def _takes_over(lab: Lab, act: Callable[[str], object]) -> None:
    """As after any death of the primary's VM: one connection, no answer lost."""

    async def scenario() -> None:
        await until_serving(_client(lab))
        lines = Lines(await _client(lab).connect(LEDGER))
        count = await _append(lines)
        host = await asyncio.to_thread(_primary, lab)
        await asyncio.to_thread(act, host)
        assert await _append(lines) == count + 1
        lines.close()
        await asyncio.to_thread(lab.wait_protected)
        assert _primary(lab) == _other(host)

    asyncio.run(scenario())


# --- reboot and panic -------------------------------------------------------------------------


def test_the_guest_reboots_and_the_pair_goes_on(pair: Lab) -> None:
    _lives_on(pair, lambda host: _tell(pair, "REBOOT"), "the guest reboots")
    _takes_over(pair, lambda host: faults.kill(pair, host, "vm"))


def test_an_operator_resets_the_primarys_vm(pair: Lab) -> None:
    says = "the guest was reset (host-qmp-system-reset)"
    _lives_on(pair, lambda host: _qmp(pair, host, "system_reset"), says)


def test_a_guest_that_panics_reboots_if_it_wants_to(pair: Lab) -> None:
    _lives_on(pair, lambda host: _tell(pair, "PANIC 1"), "the guest reboots")
    says = "the guest panicked; whether it reboots is its own setting"
    assert says in _history(pair, _primary(pair))


def test_a_guest_that_stays_panicked_is_shown_until_it_is_reset(pair: Lab) -> None:
    host = _primary(pair)
    generation = _status(pair, host)["record"]["generation"]
    _tell(pair, "PANIC 0")
    pair.wait(lambda: _status(pair, host)["guest"]["panicked"], "no panic is shown", 60)
    assert "PANICKED" in cli(pair, host, "status").stdout
    assert cli(pair, host, "checkpoint").returncode == 0
    pair.wait_protected()
    _qmp(pair, host, "system_reset")
    _serves(pair)
    pair.wait_protected()
    status = _status(pair, host)
    assert (status["guest"]["panicked"], status["record"]["generation"]) == (False, generation)


# --- QEMU is told to end ----------------------------------------------------------------------


def test_quit_behind_the_daemons_back_is_a_death(pair: Lab) -> None:
    host = _primary(pair)
    _takes_over(pair, lambda host: _qmp(pair, host, "quit"))
    assert "QEMU was told to end, not by this daemon (host-qmp-quit)" in _history(pair, host)


def test_so_is_sigterm(pair: Lab) -> None:
    host = _primary(pair)
    _takes_over(pair, lambda host: os.kill(_vm(pair, host), signal.SIGTERM))
    assert "QEMU was told to end, not by this daemon (host-signal)" in _history(pair, host)


# --- poweroff ---------------------------------------------------------------------------------


def _both_say_off(lab: Lab, image: str) -> None:
    def off() -> bool:
        states = [lab.ask(host) or {} for host in HOSTS]
        return all(s.get("state") == "off" and s["vm_process"] is None for s in states)

    lab.wait(off, "the VM is not off", 60)
    for host in HOSTS:
        sentence = _status(lab, host)["sentence"]
        assert sentence.startswith("the guest powered itself off at 20")
        assert sentence.endswith(f": `colo-ebpf start` on {image} starts it again")
        assert processes.pids_of(lab.places[host].namespace, "vm") == []


def _start_again(lab: Lab, image: str, count: int) -> None:
    refused = cli(lab, _other(image), "start")
    assert refused.returncode == 2
    assert f"its image is on {image}: say it there" in refused.stderr
    done = cli(lab, image, "start")
    assert (done.returncode, done.stdout.strip()) == (0, f"{image} serves now"), done.stderr
    _serves(lab, count)
    lab.wait_protected()
    assert "the VM is not off" in cli(lab, image, "start").stderr


def test_a_pair_that_its_guest_powers_off_stays_off_until_it_is_started(pair: Lab) -> None:
    image, count = _primary(pair), _serves(pair)
    _tell(pair, "POWEROFF")
    _both_say_off(pair, image)
    for host in HOSTS:
        faults.kill(pair, host, "daemon")
    pair.heal()
    _both_say_off(pair, image)
    _start_again(pair, image, count)


def test_a_vm_alone_is_started_again_after_quit_and_not_after_a_poweroff(pair: Lab) -> None:
    image = _primary(pair)
    faults.kill(pair, _other(image), "host")
    pair.wait(lambda: (pair.ask(image) or {}).get("state") == "solo", "it is not alone", 60)
    count, before = _serves(pair), _vm(pair, image)
    _qmp(pair, image, "quit")
    count = _serves(pair, count)
    assert _vm(pair, image) != before
    _tell(pair, "POWEROFF")
    pair.wait(lambda: (pair.ask(image) or {}).get("state") == "off", "the VM is not off", 60)
    pair.heal()
    _both_say_off(pair, image)
    _start_again(pair, image, count)
