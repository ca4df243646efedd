# SPDX-License-Identifier: GPL-2.0-only
"""The fence: what is remembered of it, real commands, and the two example scripts."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.actions import Fence
from colo_ebpf.control.decision.fencing import FenceMemory
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.decision.snapshot import FenceWhen
from colo_ebpf.control.host.fence import FenceCommand
from colo_ebpf.errors import CannotFenceError, FenceError
from tests.capabilities import ROOT
from tests.unit.toy_steps import steps_of

FENCE = Fence("b", 5, "b is not heard")
LONG_MS = 60_000
EXAMPLES = ROOT / "packaging" / "fence"
A, B = "a/0000000000000001", "b/0000000000000002"
ACTIVE = record.activate(record.start(record.cold("a"), A))
PAIRED = record.pair(ACTIVE, B, 7)


# --- what is remembered -----------------------------------------------------------------------


def _after_solo() -> FenceMemory:
    memory = FenceMemory(FenceWhen.AFTER_SOLO, "a", "b")
    memory.learned(PAIRED, record.claim(PAIRED, A), "bidding: b is not heard")
    return memory


def test_who_did_not_agree_is_due_once_the_claim_is_active() -> None:
    claim = record.claim(PAIRED, A)
    memory = _after_solo()
    assert memory.facts.due is None
    memory.learned(claim, record.activate(claim), "")
    assert memory.facts.due == Fence("b", claim.generation, "bidding: b is not heard")
    memory.ended(FenceError("no"), 7)
    memory.learned(record.activate(claim), record.reassert(record.activate(claim)), "")
    assert (memory.facts.due is not None, memory.facts.failures, memory.facts.error) == (
        True, 1, "no")  # fmt: skip
    memory.ended(None, 9)
    assert (memory.facts.due, memory.facts.failures) == (None, 0)


def test_nobody_is_due_who_conceded_or_is_offered_a_pairing() -> None:
    memory = _after_solo()
    conceded = record.concede(record.claim(PAIRED, A), B)
    memory.learned(conceded, record.activate(conceded), "")
    assert memory.facts.due is None
    claim = record.claim(PAIRED, A)
    memory = _after_solo()
    memory.learned(claim, record.activate(claim), "")
    memory.pairs()
    assert memory.facts.due is None


def test_a_new_claim_begins_anew() -> None:
    memory = FenceMemory(FenceWhen.BEFORE_SOLO, "a", "b")
    memory.learned(None, record.claim(PAIRED, A), "reading")
    assert memory.facts.reason == "claimed by an earlier run of this daemon"
    memory.ended(CannotFenceError("no switch"), 7)
    assert memory.facts.hopeless
    memory.learned(record.claim(PAIRED, A), record.claim(record.claim(PAIRED, A), B), "")
    assert (memory.facts.hopeless, memory.facts.failures) == (False, 0)


# --- real commands ----------------------------------------------------------------------------


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _command(tmp_path: Path, text: str, timeout_ms: int = LONG_MS) -> FenceCommand:
    script = _script(tmp_path / "fence", text)
    return FenceCommand((str(script), "an argument; with $shell"), timeout_ms, "web", "a")


async def test_exit_0_is_a_peer_that_is_off_and_the_command_knows_whom_and_why(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    text = f"""
        printf '%s\\n' "$1" "$COLO_VM" "$COLO_HOST" "$COLO_PEER" > {told}
        printf '%s\\n' "$COLO_GENERATION" "$COLO_REASON" >> {told}
        cat >> {told}  # nothing comes, and it ends
    """
    await _command(tmp_path, text).run(FENCE)
    assert told.read_text().splitlines() == [
        "an argument; with $shell", "web", "a", "b", "5", "b is not heard"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("echo no answer; exit 1", FenceError, r"fence: exit code 1 \(no answer\)"),
        ("echo down >&2; exit 7", FenceError, r"exit code 7 \(down\)"),
        ("kill -TERM $$", FenceError, "ended by signal 15"),
        ("echo no such host; exit 2", CannotFenceError, r"cannot fence b \(no such host\)"),
    ],
)
async def test_what_an_exit_code_means(
    tmp_path: Path, text: str, kind: type[FenceError], says: str
) -> None:
    with pytest.raises(FenceError, match=says) as caught:
        await _command(tmp_path, text).run(FENCE)
    assert type(caught.value) is kind


async def test_of_much_output_the_end_is_kept(tmp_path: Path) -> None:
    text = "yes word | head -c 3000000; echo; echo the end; exit 1"
    with pytest.raises(FenceError, match=r"word the end\)$") as caught:
        await _command(tmp_path, text).run(FENCE)
    assert len(str(caught.value)) < 2500


async def test_one_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    # Shell and children keep the pipe open for writing: it ends when all are gone.
    text = f"exec 9> {alive}; echo asking >&9; sleep 1000 & sleep 1000"
    with pytest.raises(FenceError, match="was killed after 2000 ms"):
        await _command(tmp_path, text, 2000).run(FENCE)
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as pipe:
        await asyncio.to_thread(pipe.read)


async def test_one_that_is_given_up_is_killed(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    command = _command(tmp_path, f"exec 9> {alive}; echo asking >&9; sleep 1000")
    task = asyncio.create_task(command.run(FENCE))
    with await asyncio.to_thread(alive.open, "rb") as reader:
        assert await asyncio.to_thread(reader.readline) == b"asking\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(reader.read) == b""


async def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    os.mkfifo(stop)
    await _command(tmp_path, f"(read line < {stop}) & echo done").run(FENCE)
    with stop.open("w") as pipe:
        pipe.write("\n")


async def test_a_command_that_cannot_be_run_is_a_failure(tmp_path: Path) -> None:
    command = FenceCommand((str(tmp_path / "none"),), LONG_MS, "web", "a")
    with pytest.raises(FenceError, match="none: cannot be run: No such file"):
        await command.run(FENCE)


async def test_the_step_runs_the_command_also_without_a_vm(tmp_path: Path) -> None:
    run = _command(tmp_path, f"echo $COLO_PEER > {tmp_path}/told").run
    steps = steps_of(None, tmp_path, fence=run)
    assert await steps.run(FENCE) is None
    assert (tmp_path / "told").read_text() == "b\n"


def test_the_table_of_the_configuration_reaches_the_command() -> None:
    text = f'{EXAMPLE}\n[fence]\ncommand = ["/bin/f", "x"]\nwhen = "before-solo"\n'
    parsed = parse_config(text, Path("file"))
    assert settings.fence(parsed) == FenceCommand(("/bin/f", "x"), 10_000, "web", "a")
    assert FenceWhen(parsed.fence.when) is FenceWhen.BEFORE_SOLO


# --- the examples -----------------------------------------------------------------------------


def _run(example: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With the programs in `directory` first in PATH."""
    path = f"{directory}:{os.environ['PATH']}"
    known = {"COLO_PEER": "b", "COLO_VM": "web", "FENCE_WAIT_S": "0", "PATH": path}
    return subprocess.run(
        [str(EXAMPLES / example)],
        env={**os.environ, **known, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("example", ["ipmi", "hypervisor"])
def test_the_examples_are_programs_in_plain_shell(example: str) -> None:
    path = EXAMPLES / example
    assert path.stat().st_mode & stat.S_IXUSR
    lines = path.read_text().splitlines()
    assert lines[:2] == ["#!/bin/sh", "# SPDX-License-Identifier: GPL-2.0-only"]
    assert "set -eu" in lines
    subprocess.run(["sh", "-n", str(path)], check=True, timeout=60)


_IPMI = """
    echo "$*" >> {log}
    case "$*" in
    *"power status") [ $(grep -c status {log}) -ge {off_after} ] && echo "Chassis Power is off" ||
        echo "Chassis Power is on" ;;
    *"power off") echo "{answer}"; exit {code} ;;
    esac
"""


def _bmc(directory: Path, off_after: int, code: int = 0) -> dict[str, str]:
    log, answer = directory / "log", "Chassis Power Control: Down/Off"
    text = _IPMI.format(log=log, off_after=off_after, answer=answer, code=code)
    _script(directory / "ipmitool", text)
    (directory / "ipmi.b").write_text("BMC_ADDRESS=192.0.2.9\nBMC_USER=fence\n")
    (directory / "ipmi.b.password").write_text("secret")
    return {"FENCE_DIR": str(directory)}


def test_ipmi_waits_until_the_power_is_off(tmp_path: Path) -> None:
    done = _run("ipmi", tmp_path, **_bmc(tmp_path, off_after=3))
    assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == ["off", "status", "status", "status"]
    assert all("-H 192.0.2.9 -U fence -f" in call for call in calls)


def test_ipmi_fails_while_the_power_stays_on_and_asks_even_if_off_was_refused(
    tmp_path: Path,
) -> None:
    done = _run("ipmi", tmp_path, **_bmc(tmp_path, off_after=999))
    assert (done.returncode, "still on" in done.stderr) == (1, True)
    done = _run("ipmi", tmp_path, **_bmc(tmp_path, off_after=1, code=1))
    assert done.returncode == 0, "it was off already"


def test_ipmi_cannot_fence_a_host_it_knows_nothing_of(tmp_path: Path) -> None:
    environment = _bmc(tmp_path, off_after=1)
    done = _run("ipmi", tmp_path, **{**environment, "COLO_PEER": "c"})
    assert (done.returncode, "ipmi.c" in done.stderr) == (2, True)


_VIRSH = """
    echo "$*" >> {log}
    case "$*" in
    *" domstate "*) echo "{state}"; exit {reached} ;;
    *" destroy "*) exit {destroyed} ;;
    esac
"""


def _hypervisor(
    directory: Path, state: str, reached: int = 0, destroyed: int = 0
) -> dict[str, str]:
    text = _VIRSH.format(log=directory / "log", state=state, reached=reached, destroyed=destroyed)
    _script(directory / "virsh", text)
    (directory / "hypervisor.b").write_text(
        "URI=qemu+ssh://fence@192.0.2.9/system\nDOMAIN=host-b\n"
    )
    return {"FENCE_DIR": str(directory)}


@pytest.mark.parametrize(
    ("state", "reached", "destroyed", "code"),
    [
        ("shut off", 0, 0, 0),
        ("shut off", 0, 1, 0),  # it was off already: destroy refuses
        ("running", 0, 1, 1),
        ("running", 0, 0, 1),  # restarted meanwhile
        ("", 1, 1, 1),  # the hypervisor does not answer
    ],
)
def test_hypervisor_believes_only_the_domains_state(
    tmp_path: Path, state: str, reached: int, destroyed: int, code: int
) -> None:
    done = _run("hypervisor", tmp_path, **_hypervisor(tmp_path, state, reached, destroyed))
    assert done.returncode == code, done.stderr
    first = (tmp_path / "log").read_text().splitlines()[0]
    assert first == "-c qemu+ssh://fence@192.0.2.9/system destroy host-b"


def test_hypervisor_cannot_fence_a_host_it_knows_nothing_of(tmp_path: Path) -> None:
    environment = _hypervisor(tmp_path, "shut off")
    done = _run("hypervisor", tmp_path, **{**environment, "COLO_PEER": "c"})
    assert (done.returncode, "hypervisor.c" in done.stderr) == (2, True)


@pytest.mark.parametrize("when", [FenceWhen.BEFORE_SOLO, FenceWhen.AFTER_SOLO])
@pytest.mark.parametrize("before", [PAIRED, None], ids=["lived through it", "restarted"])
def test_who_handed_over_is_not_fenced(when: FenceWhen, before: Record | None) -> None:
    """A switchover: the old primary wrote the claim, and is named as the way back."""
    memory = FenceMemory(when, "a", "b")
    claim = record.hand_over(record.pair(record.activate(record.start(record.cold("b"), B)), A, 7))
    memory.learned(before, claim, "secondary of a protected pair")
    memory.learned(claim, record.activate(claim), "")
    assert memory.facts.due is None
