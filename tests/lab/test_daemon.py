# SPDX-License-Identifier: GPL-2.0-only
"""The daemon of a running pair: asked, started twice, killed and started again, fed bad input."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import look
from colo_ebpf.control import link_security
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.bpf.syscalls import RawMap, obj_get
from colo_ebpf.datapath.net import namespaces, netdev
from colo_ebpf.errors import ControlError, LabError
from colo_ebpf.lab import faults, processes, topology
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab, commands
from colo_ebpf.lab.workload import LEDGER, Dice, until_serving
from tests import said
from tests.capabilities import GUEST, require
from tests.lab import clean, cli

NAME = "colotest"


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """A protected pair whose guest serves."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab(NAME))
    lab.up(choose(Wanted()))
    try:
        lab.wait(lambda: b"serving" in _serial(lab), "the guest does not serve", 60)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def bare() -> Iterator[Lab]:
    """A lab without daemons."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab(f"{NAME}x"))
    try:
        lab.build(choose(Wanted()))
        yield lab
    finally:
        lab.down()


def _serial(lab: Lab) -> bytes:
    return (lab.places["a"].run_dir / "serial.log").read_bytes()


def _status(lab: Lab, host: str = "a") -> dict[str, Any]:
    return dict(json.loads(cli(lab, host, "status", "--json").stdout))


def _log(lab: Lab, host: str) -> str:
    return lab.places[host].log.read_text()


def test_status_tells_what_an_operator_needs(pair: Lab) -> None:
    status = _status(pair)
    assert (status["role"], status["protected"], status["disk"]) == ("primary", True, "replicated")
    assert status["checkpoints"]["by_cause"]["pairing"] >= 1
    assert status["checkpoints"]["last"]["pause_ms"] > 0
    assert status["epoch"] == _status(pair, "b")["epoch"] > 0
    assert status["peer"]["link_age_ms"] < 1000
    assert any(row["reason"] == "beacon" for row in status["packets"])
    for host in "ab":
        assert set(_status(pair, host)) == set(said.status())
        assert set(_status(pair, host)["peer"]) == set(said.status()["peer"])
    assert set(status["checkpoints"]) == set(said.status()["checkpoints"])
    assert set(status["checkpoints"]["last"]) == set(said.status()["checkpoints"]["last"])
    text = cli(pair, "a", "status").stdout
    for word in ("primary", "checkpoints", "held now", "replicated", "PROGRAM"):
        assert word in text


def test_a_monitor_and_a_table_show_the_pair(pair: Lab, tmp_path: Path) -> None:
    (tmp_path / "vms").mkdir()
    for host, place in pair.places.items():
        (tmp_path / "vms" / f"{host}.toml").symlink_to(place.config)
    done = cli(pair, "b", "check")
    assert (done.returncode, done.stdout[:5]) == (0, "OK - ")
    rows = [one.plain() for one in look.rows(tmp_path)]
    assert [(row["serves_on"], row["protected"], row["link"]) for row in rows] == [
        ("a", True, "ok"),
        ("a", True, "ok"),
    ]
    assert [row["replica"] for row in rows] == ["b", "b"]
    assert rows[0]["pause_p99_ms"] > 0


def test_everything_is_where_paths_says(pair: Lab) -> None:
    done = cli(pair, "a", "paths")
    assert done.returncode == 0
    lacking = [line for line in done.stdout.splitlines() if line.endswith("(not there)")]
    assert not [line for line in lacking if not line.startswith("overlays")]  # made by a replica
    console = cli(pair, "a", "logs", "--guest")
    assert console.returncode == 0
    assert console.stdout.strip()


def test_the_commands_that_lab_up_prints_work(pair: Lab) -> None:
    for command in commands(pair):
        words = command.replace("colo-ebpf ", f"{sys.executable} -m colo_ebpf.cli.main ").split()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        # bpftool of Debian 13 ends with what errno happens to be, after it has shown a pinned link.
        shown = "link show pinned" in command and "prog " in done.stdout
        assert shown or done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip()
    turn = subprocess.run(commands(pair)[3].split(), capture_output=True, text=True, check=True)
    assert '"word"' in turn.stdout, "typed maps print their fields"


def test_the_link_is_sealed_where_the_kernel_can_do_it(pair: Lab) -> None:
    """And where it cannot, that is said."""
    try:
        best = link_security.best("auto").value
    except ControlError:
        best = "none"
    sealed = best != "none"
    for host in "ab":
        pair.wait(lambda h=host: _status(pair, h)["link"]["agreed"] is sealed, "not agreed", 60)
        one = _status(pair, host)["link"]
        assert one["security"] == best
        assert bool(one["warning"]) is not sealed
        assert (link_security.UNSEALED in _log(pair, host)) is not sealed


def test_the_key_is_changed_while_the_pair_is_protected(pair: Lab) -> None:
    """The hosts of a lab share one key file, so the second step is done with the first."""
    before = _status(pair)
    made = cli(pair, "a", "key", "rotate")
    assert made.returncode == 0, made.stderr
    assert "ssh b colo-ebpf key rotate --from - < " in made.stdout
    pair.wait(
        lambda: all(
            _status(pair, host)["key"]["speaks"] != before["key"]["speaks"] for host in "ab"
        ),
        "the new key is not spoken",
        60,
    )
    pair.wait(lambda: cli(pair, "a", "key", "rotate").returncode == 0, "it does not end", 60)
    pair.wait(
        lambda: all(len(_status(pair, host)["key"]["hears"]) == 1 for host in "ab"),
        "the old key is heard",
        60,
    )
    for host in "ab":
        status = _status(pair, host)
        assert status["protected"]
        assert status["key"]["hears"] == [status["key"]["speaks"]]
        assert "key" not in status["peer"]["refused"]
    assert _status(pair)["record"]["generation"] == before["record"]["generation"]


def test_an_operator_asks_for_a_checkpoint(pair: Lab) -> None:
    before = _status(pair)["checkpoints"]["by_cause"].get("operator", 0)
    done = cli(pair, "a", "checkpoint")
    assert done.returncode == 0
    assert re.fullmatch(r"epoch \d+ is loaded: the VM stood for [\d.]+ ms, .*\n", done.stdout)
    assert _status(pair)["checkpoints"]["by_cause"].get("operator", 0) == before + 1
    refused = cli(pair, "b", "checkpoint")
    assert refused.returncode == 2
    assert "ask the primary" in refused.stderr


def test_a_second_daemon_is_refused_and_disturbs_nothing(pair: Lab) -> None:
    again = cli(pair, "a", "run")
    assert again.returncode == 2
    assert "a daemon runs already here" in again.stderr
    assert _status(pair)["protected"]


def test_doctor_on_a_host_that_works(pair: Lab) -> None:
    done = cli(pair, "a", "doctor", "--json")
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 0, findings
    assert findings["link MTU"]["ok"]
    assert "it can run COLO" in findings["qemu"]["detail"]


@pytest.mark.parametrize("host", ["a", "b"])
def test_the_daemon_has_no_compiler_in_its_memory(pair: Lab, host: str) -> None:
    (pid,) = processes.pids_of(pair.places[host].namespace, "daemon")
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "libbpf" in mapped
    assert "LLVM" not in mapped
    assert "libbcc" not in mapped


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_killed_daemon_adopts_vm_and_maps_and_protection_goes_on(pair: Lab, host: str) -> None:
    async def append(lines: Lines, number: int) -> str:
        async with asyncio.timeout(60):
            return await lines.ask(f"ADD {number} written on {host}")

    async def scenario() -> None:
        client = Client(pair.namespace_of("client"), pair.guest_address)
        lines = Lines(await client.connect(LEDGER))
        count = int((await lines.ask("SUM")).split()[1])
        vm = processes.pids_of(pair.places[host].namespace, "vm")
        faults.kill(pair, host, "daemon")
        if host == "b":  # the primary's daemon goes on to take checkpoints
            assert (await append(lines, count + 1)).startswith(f"OK {count + 1} ")
            count += 1
        await asyncio.to_thread(pair.heal)
        await asyncio.to_thread(pair.wait_protected)
        assert (await append(lines, count + 1)).startswith(f"OK {count + 1} ")
        assert processes.pids_of(pair.places[host].namespace, "vm") == vm
        lines.close()

    generation = _status(pair)["record"]["generation"]
    asyncio.run(scenario())
    assert f"adopted {host}/" in _log(pair, host)
    assert _status(pair)["record"]["generation"] == generation, "nobody went solo meanwhile"


def _mismatches(lab: Lab, host: str) -> int:
    place = lab.places[host]
    table = RawMap(obj_get(str(pin_directory(place.bpffs, lab.name) / "colo_live")))
    word = table.get(struct.pack("=I", LiveWord.MISMATCHES)) or b""
    os.close(table.fd)
    return int(struct.unpack("=Q", word)[0])


def test_what_the_plane_told_nobody_does_not_end_the_pair(pair: Lab) -> None:
    """Its ring outlives the daemon: the next one hears of it, and has its VM by then."""

    async def scenario() -> None:
        client = Client(pair.namespace_of("client"), pair.guest_address)
        dice, before = Dice(client), _mismatches(pair, "a")
        faults.kill(pair, "a", "daemon")
        roll = asyncio.create_task(dice.roll())
        await asyncio.to_thread(
            pair.wait, lambda: _mismatches(pair, "a") > before, "both VMs rolled the same", 30
        )
        await asyncio.to_thread(pair.heal)
        await asyncio.to_thread(pair.wait_protected)
        await roll
        assert dice.seen
        assert dice.wrong == []

    begin, generation = len(_log(pair, "a")), _status(pair)["record"]["generation"]
    asyncio.run(scenario())
    said = _log(pair, "a")[begin:]
    assert re.search(r"adopted \d+ programs that are loaded", said)
    assert "conceding" not in said
    assert _status(pair)["record"]["generation"] == generation, "nobody went solo meanwhile"


def test_anyone_can_bring_a_guest(tmp_path: Path) -> None:
    require("root", "bpf", "qemu", "guest")
    disk = tmp_path / "own.raw"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    own = Wanted(
        kernel=str(GUEST / "vmlinuz"),
        initrd=str(GUEST / "initramfs.gz"),
        append="console=ttyS0 quiet no_timer_check random.trust_cpu=on",
        memory_mib=160,
        disk=str(disk),
        address="192.168.77.20",
        accel="tcg",
    )
    lab = clean(Lab(f"{NAME}g"))
    try:
        lab.up(choose(own))
        asyncio.run(until_serving(Client(lab.namespace_of("client"), "192.168.77.20")))
        assert lab.places["a"].disk.stat().st_size == 32 << 20
        (pid,) = processes.pids_of(lab.places["a"].namespace, "vm")
        assert "-m 160 " in processes.command_of(pid)
    finally:
        lab.down()


# --- bad input ------------------------------------------------------------------------------


def _change(lab: Lab, host: str, old: str, new: str) -> None:
    config = lab.places[host].config
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def _start(lab: Lab, *hosts: str) -> None:
    for host in hosts:
        lab.start_daemon(lab.places[host])


def _says(lab: Lab, host: str, words: str) -> None:
    lab.wait(lambda: words in _log(lab, host), f"{host} does not say {words!r}", 90)


def test_images_of_different_size_are_not_paired_and_the_vm_serves_on(bare: Lab) -> None:
    with Path(bare.places["b"].disk).open("r+b") as image:
        image.truncate(32 << 20)
    _start(bare, "a", "b")
    _says(bare, "a", "b cannot have a replica: bytes of disk 0 is 67108864 on a and 33554432 on b")
    bare.wait(lambda: (bare.ask("a") or {}).get("mode") == "solo", "a does not serve alone", 30)


def test_hosts_that_name_their_vm_differently_never_meet(bare: Lab) -> None:
    """The ports follow from the name."""
    _change(bare, "b", f'name = "{bare.name}"', 'name = "other"')
    _start(bare, "a", "b")
    _says(bare, "a", "no daemon of this VM listens on b: does it run there, with the same vm.name")
    assert bare.ask("a")["protected"] is False


def test_another_vms_peer_is_told_and_ignored(bare: Lab) -> None:
    _change(bare, "b", f'name = "{bare.name}"', 'name = "other"')
    for host in bare.places:
        _change(bare, host, 'underlay = "link0"', 'underlay = "link0"\nheartbeat-port = 7460')
    _start(bare, "a", "b")
    _says(bare, "a", "another VM's name")
    bare.wait(lambda: (bare.ask("a") or {}).get("mode") == "solo", "a does not serve alone", 60)
    assert "another VM's name" in bare.ask("a")["peer"]["error"]


def test_a_link_too_small_ends_the_daemon_before_any_vm_starts(bare: Lab) -> None:
    place = bare.places["a"]
    namespaces.run_in(place.namespace, lambda: netdev.set_up(topology.LINK, 1500))
    done = cli(bare, "a", "run")
    assert done.returncode == 2
    assert "its MTU of 1500 is too small" in done.stderr
    assert processes.pids_of(place.namespace, "vm") == []


def test_a_qemu_without_colo_is_told_and_the_record_says_nobody_serves(bare: Lab) -> None:
    fake = Path(__file__).parents[1] / "qemu" / "fake_qemu.py"
    _change(bare, "a", 'preload = "', f'qemu = "{fake}"\npreload = "')
    _start(bare, "a")
    _says(bare, "a", "has no x-colo capability")
    assert bare.ask("a")["mode"] == "withhold"


def test_a_directory_cannot_be_cut_off(bare: Lab) -> None:
    with pytest.raises(LabError, match="lab up --arbiter etcd"):
        faults.cut(bare, "arbiter")


def test_a_wrong_configuration_ends_the_daemon_with_one_line(bare: Lab) -> None:
    _change(bare, "a", "memory-mib", "memory-mb")
    done = cli(bare, "a", "run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "did you mean 'memory-mib'" in done.stderr
