# SPDX-License-Identifier: GPL-2.0-only
"""Parts of a few lines each: COLO trace, command line, sd_notify, reaping."""

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

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.core.back_off import BackOff
from colo_ebpf.control.host.systemd import Notifier
from colo_ebpf.control.qemu import cmdline, colo_trace
from colo_ebpf.control.qemu.schedstat import Ran
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.control.qemu.taps import Taps
from colo_ebpf.control.qemu.vm import Qemu
from colo_ebpf.control.state.files import NoteFile
from colo_ebpf.datapath.bpf import loader
from colo_ebpf.errors import ConfigError, LoadError, VmError
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
    state = colo_trace.follow(colo_trace.TraceState(), [line.encode() for line in lines])
    assert colo_trace.settled(state, exited) is wanted
    assert state.loads == loads


def test_the_trace_tells_a_primary_what_its_secondary_has_loaded() -> None:
    told = "colo_receive_message Receive 'vmstate-loaded' message"
    lines = [STOP, "colo_receive_message Receive 'vmstate-received' message", told, RUN]
    state = colo_trace.follow(colo_trace.TraceState(), [line.encode() for line in 2 * lines])
    assert (state.told, state.loads) == (2, 0)


def test_sources_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (loader.source_directory() / "mirror.c").exists()
    monkeypatch.setenv("COLO_EBPF_BPF", "/nonexistent")
    with pytest.raises(LoadError, match=r"no compare\.c in /nonexistent"):
        loader.source_directory()


def _line(role: VmRole) -> list[str]:
    parsed = parse_config(EXAMPLE, Path("example"))
    spec = settings.vm_spec(parsed, "kvm")
    return cmdline.command_line(spec, role, "a/0123456789abcdef", ("file",) * len(spec.disks))


def test_both_sides_get_the_same_devices_in_the_same_order() -> None:
    devices = [
        [line[i + 1] for i, word in enumerate(line) if word == "-device"]
        for line in (_line(VmRole.PRIMARY), _line(VmRole.SECONDARY))
    ]
    assert devices[0] == devices[1]


@pytest.mark.parametrize("role", list(VmRole))
def test_the_guest_is_told_an_unusual_mtu(role: VmRole) -> None:
    assert "host_mtu" not in " ".join(_line(role)), "as it was for every VM that runs"
    text = EXAMPLE.replace("mtu = 1500", "mtu = 9000")
    spec = settings.vm_spec(parse_config(text, Path("example")), "kvm")
    assert ",host_mtu=9000," in " ".join(cmdline.command_line(spec, role, "a/01", ("file",)))


def test_no_udp_fragmentation_is_offered_and_the_instance_is_named() -> None:
    line = " ".join(_line(VmRole.PRIMARY))
    for name in ("guest_ufo", "host_ufo"):
        assert f"{name}=off" in line
    assert "tso4=off" not in line
    assert "-name web@a/0123456789abcdef" in line
    assert "shutdown=pause,panic=none" in line
    assert "-S" in line.split()
    assert "-incoming defer" in " ".join(_line(VmRole.SECONDARY))


def _words(table: str) -> str:
    text = EXAMPLE.replace("[vm]\n", f"[vm]\n{table}\n")
    spec = settings.vm_spec(parse_config(text, Path("example")), "tcg")
    return " ".join(cmdline.command_line(spec, VmRole.PRIMARY, "a/1", ("file",)))


def test_cpu_firmware_and_uuid_reach_the_command_line() -> None:
    plain = _words("")
    assert "-cpu max" in plain
    assert "pflash" not in plain and "-uuid" not in plain
    uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    flash = 'firmware = "/c.fd"\nfirmware-vars = "/v.fd"'
    said = _words(f'cpu = "Haswell,-hle"\nuuid = "{uuid}"\n{flash}')
    assert "-cpu Haswell,-hle" in said
    assert f"-uuid {uuid}" in said
    assert "if=pflash,unit=0,format=raw,readonly=on,file=/c.fd" in said
    assert "if=pflash,unit=1,format=raw,file=/v.fd" in said


def test_a_vm_without_a_kernel_boots_from_its_first_disk() -> None:
    assert "bootindex" not in _words("")
    text = EXAMPLE.replace('kernel = "/var/lib/colo-ebpf/vmlinuz"', "")
    text = text.replace('append = "root=/dev/vda1"', "")
    spec = settings.vm_spec(parse_config(text, Path("example")), "tcg")
    line = " ".join(cmdline.command_line(spec, VmRole.PRIMARY, "a/1", ("file",)))
    assert "id=disk0" in line and ",bootindex=9" in line


def test_hardware_of_an_imported_guest_reaches_the_command_line() -> None:
    plain = _words("")
    assert not any(word in plain for word in ("-vga", "-vnc", "-rtc", "virtio-rng", "addr="))
    said = _words('clock = "localtime"\nrng = true\nvga = true')
    assert "-vga std -vnc unix:/run/colo-ebpf/web/qemu/vnc.sock" in said
    assert "-rtc base=localtime" in said
    assert "-device virtio-rng-pci,rng=rng0" in said


def test_a_disk_has_its_place_its_serial_and_its_turn_at_booting() -> None:
    text = EXAMPLE.replace('kernel = "/var/lib/colo-ebpf/vmlinuz"', "")
    text = text.replace('append = "root=/dev/vda1"', "")
    text = text.replace('format = "raw"', 'format = "raw"\nboot-order = 2\nserial = "s1"\nslot = 7')
    text = text.replace("mtu = 1500", "mtu = 1500\nslot = 31")
    spec = settings.vm_spec(parse_config(text, Path("example")), "tcg")
    line = " ".join(cmdline.command_line(spec, VmRole.PRIMARY, "a/1", ("file",)))
    assert ",bootindex=2,serial=s1,addr=0x7" in line
    assert "host_ufo=off,addr=0x1f" in line


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('uuid = "web"', r"vm\.uuid: Expected `str` matching"),
        ('cpu = "host -smp 9"', r"vm\.cpu: Expected"),
        ('firmware = "/c.fd"', "vm.firmware and vm.firmware-vars come together"),
        ('firmware = "/c,x"\nfirmware-vars = "/v"', "has a comma"),
    ],
)
def test_what_qemu_would_take_for_something_else_is_refused(table: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _words(table)


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
    vm = Qemu(spec, VmRole.PRIMARY, "a/0123456789abcdef", process.pid, Taps(), starter=Starter())
    with monkeypatch.context() as patch:
        patch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: None)
        with pytest.raises(VmError, match="is killed and not gone after 50 ms: it waits inside"):
            await vm.kill()
    await vm.kill()
    assert not vm.alive
    await process.wait()


def test_a_rest_doubles_up_to_half_a_minute_and_begins_anew_with_the_peer() -> None:
    rests, second = BackOff(), 1_000_000_000
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
