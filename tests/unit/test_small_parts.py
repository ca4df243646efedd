# SPDX-License-Identifier: GPL-2.0-only
"""Parts of a few lines each: COLO trace, QEMU versions, command line, sd_notify, reaping."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colo_ebpf import config
from colo_ebpf.control import cmdline, settings, trace
from colo_ebpf.control.epoch_secondary import Note
from colo_ebpf.control.machine import judge_version
from colo_ebpf.control.notefile import NoteFile
from colo_ebpf.control.notify import Notifier
from colo_ebpf.control.ran import Ran
from colo_ebpf.control.rests import Rests
from colo_ebpf.control.taps import Taps
from colo_ebpf.control.vm import Qemu
from colo_ebpf.datapath import loader
from colo_ebpf.errors import LoadError, VmError
from colo_ebpf.lab import ledger
from colo_ebpf.model import Settled, VmRole
from tests.qemu.pair import spec_of

STOP = "colo_vm_state_change Change 'run' => 'stop'"
RUN = "colo_vm_state_change Change 'stop' => 'run'"
RECEIVED = "colo_send_message Send 'vmstate-received' message"
LOADED = "colo_send_message Send 'vmstate-loaded' message"


@pytest.mark.parametrize(
    ("lines", "exited", "wanted", "loads"),
    [
        ([], False, Settled.CURRENT, 0),
        ([STOP], False, Settled.OPEN, 0),
        ([STOP, RECEIVED], False, Settled.OPEN, 0),
        ([STOP], True, Settled.OLD, 0),
        ([STOP, RECEIVED], True, Settled.BROKEN, 0),
        ([STOP, RECEIVED, RUN, LOADED], False, Settled.NEW, 1),
        ([STOP, RECEIVED, RUN, LOADED], True, Settled.NEW, 1),
        ([STOP, RECEIVED, RUN, LOADED, STOP], True, Settled.OLD, 1),
    ],
)
def test_what_the_trace_says(lines: list[str], exited: bool, wanted: Settled, loads: int) -> None:
    state = trace.follow(trace.TraceState(), [line.encode() for line in lines])
    assert trace.settled(state, exited) is wanted
    assert state.loads == loads


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", True),
        ("QEMU emulator version 8.2.1", False),
        ("QEMU emulator version 9.0.0", False),
        ("QEMU emulator version 9.1.0", True),
        ("QEMU emulator version 10.0.2", False),
        ("QEMU emulator version 10.0.13", True),
        ("QEMU emulator version 10.1.0", False),
        ("QEMU emulator version 10.2.0", True),
    ],
)
def test_versions_that_run_colo(text: str, good: bool) -> None:
    assert judge_version(text).known_good is good


def test_no_version_is_an_error() -> None:
    with pytest.raises(VmError, match="no version"):
        judge_version("hello")


def test_sources_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (loader.source_directory() / "mirror.c").exists()
    monkeypatch.setenv("COLO_EBPF_BPF", "/nonexistent")
    with pytest.raises(LoadError, match=r"no compare\.c in /nonexistent"):
        loader.source_directory()


def _line(role: VmRole) -> list[str]:
    parsed = config.parse(config.EXAMPLE, Path("example"))
    spec = settings.vm_spec(parsed, "kvm")
    return cmdline.command_line(spec, role, "a/0123456789abcdef", (3,) * len(spec.nics))


def test_both_sides_get_the_same_devices_in_the_same_order() -> None:
    devices = [
        [line[i + 1] for i, word in enumerate(line) if word == "-device"]
        for line in (_line(VmRole.PRIMARY), _line(VmRole.SECONDARY))
    ]
    assert devices[0] == devices[1]


def test_no_udp_fragmentation_is_offered_and_the_instance_is_named() -> None:
    line = " ".join(_line(VmRole.PRIMARY))
    for name in ("guest_ufo", "host_ufo"):
        assert f"{name}=off" in line
    assert "tso4=off" not in line
    assert "-name web@a/0123456789abcdef" in line
    assert "shutdown=pause,panic=none" in line
    assert "-S" in line.split()
    assert "-incoming defer" in " ".join(_line(VmRole.SECONDARY))


def test_systemd_is_told_and_the_watchdog_fed(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        s.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"})
        notifier.say(READY=1, STATUS="solo")
        assert s.recv(100) == b"READY=1\nSTATUS=solo"
        notifier.feed(10**9)
        notifier.feed(10**9 + 1)
        assert s.recv(100) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            s.recv(100)
    Notifier({}).say(READY=1)


def test_a_note_belongs_to_its_instance(tmp_path: Path) -> None:
    notes = NoteFile(tmp_path / "turns.json")
    assert notes.load("b/1") is None
    note = Note(epoch=4, before=3, loads=2, highest=4)
    notes.keep("b/1", note)
    assert notes.load("b/1") == note
    assert notes.load("b/2") is None
    (tmp_path / "turns.json").write_text("{ half")
    assert notes.load("b/1") is None


def test_the_ledgers_sums_chain() -> None:
    first = ledger.chain(ledger.EMPTY_SUM, 1, "text1")
    assert f"{first:016x}" == "0e9bc97a836fd9a8"
    assert f"{ledger.chain(first, 2, 'text2'):016x}" == "96bae5d254a22109"
    assert ledger.block(bytes(2048), 1) is None


@pytest.mark.parametrize("peer_timeout_ms", [1, 150, 999, 1000, 2500, 60_000])
def test_a_write_waits_longer_than_any_silence_and_little_longer(peer_timeout_ms: int) -> None:
    waits_ms = settings.reconnect_s(peer_timeout_ms) * 1000
    assert peer_timeout_ms < waits_ms <= peer_timeout_ms + 1000


async def test_a_process_that_the_kernel_does_not_let_go_of_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(spec_of("a", tmp_path), checkpoint_timeout_ms=50)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    vm = Qemu(spec, VmRole.PRIMARY, "a/0123456789abcdef", process.pid, Taps())
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: None)
        with pytest.raises(VmError, match="is killed and not gone after 50 ms: it waits inside"):
            await vm.kill()
    await vm.kill()
    assert not vm.alive
    await process.wait()


def test_a_rest_doubles_up_to_half_a_minute_and_begins_anew_with_the_peer() -> None:
    rests, second = Rests(), 1_000_000_000
    rests.hear("first", 0)
    lengths = []
    for _ in range(10):
        rests.failed(0)
        lengths.append(rests.until_ns // second)
    assert lengths == [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    rests.hear("first", second)
    assert rests.until_ns == 30 * second, "the same run of the daemon is no news"
    rests.hear("second", second)
    assert rests.until_ns == 2 * second
    rests.failed(5 * second)
    rests.failed(5 * second)
    assert rests.until_ns == 7 * second
    rests.paired()
    rests.failed(9 * second)
    assert rests.until_ns == 10 * second


def test_a_process_that_has_run_is_told_from_one_that_is_stopped() -> None:
    spins = "import signal\nsignal.alarm(60)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spins]) as process:
        ran = Ran(process.pid)
        try:
            assert ran.since_last_look()
            while not ran.since_last_look():
                pass
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            while ran.since_last_look():  # it is told of before it has left its CPU
                pass
            assert not ran.since_last_look()
            process.send_signal(signal.SIGCONT)
            while not ran.since_last_look():
                pass
        finally:
            process.kill()
        process.wait()
        assert not ran.since_last_look(), "of one that is gone nothing is known"
        ran.close()
        assert not ran.since_last_look()
    assert not Ran(2**22 + 1).since_last_look()
