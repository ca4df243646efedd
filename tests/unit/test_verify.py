# SPDX-License-Identifier: GPL-2.0-only
"""What `colo-ebpf verify` says, and where it says it."""

from __future__ import annotations

import sys

import pytest

from colo_ebpf.cli import verify
from colo_ebpf.cli.parser import parser
from colo_ebpf.storage.verify import Comparison, Range

MIB = 1 << 20
EQUAL = Comparison(64 * MIB, 16 * MIB, 48 * MIB, 0, (), complete=True)
DIFFERENT = Comparison(64 * MIB, 16 * MIB, 48 * MIB, 512, (Range(4096, 512),), complete=False)


def _said(*found: Comparison) -> str:
    disks = [
        {"name": f"parent{n}", "shared": False, **verify.plain(one)} for n, one in enumerate(found)
    ]
    equal = all(one.complete and not one.differences for one in found)
    return verify.readable({"equal": equal, "seconds": 1.5, "disks": disks})


def test_the_verdict_comes_last() -> None:
    text = _said(EQUAL, EQUAL)
    assert text.splitlines()[-1] == "equal, compared in 1.5 s"
    assert "parent1: 64.0 MiB, 16.0 MiB read, 48.0 MiB zero on both sides" in text


def test_of_a_shared_disk_it_says_what_it_does_not_say() -> None:
    found = Comparison(64 * MIB, 16 * MIB, 0, 4096, (), complete=True, unsettled_bytes=1024)
    disk = {"name": "parent0", "shared": True, **verify.plain(found)}
    text = verify.readable({"equal": True, "seconds": 1.5, "disks": [disk]})
    assert "4096 bytes looked at again, shared: places drawn at random" in text
    assert "parent0: 1024 bytes are written to all the time" in text


def test_what_differs_is_named_with_its_place() -> None:
    text = _said(EQUAL, DIFFERENT)
    assert text.splitlines()[-1].startswith("DIFFERENT")
    assert "parent1: differs at 4096, 512 bytes" in text
    assert "parent1: more differs; the rest was not looked at" in text
    assert "parent0: differs" not in text


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    quiet: bool,
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(verify.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with verify._progress("parent0", quiet) as tell:
        tell(16 * MIB, 64 * MIB)
    told = capsys.readouterr().err
    assert ("parent0: 16 of 64 MiB (25 %)" in told) is (terminal and not quiet)
    assert told.endswith("\r\x1b[K") or not told


def test_at_least_one_difference_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["verify", "--differences", "3"]).differences == 3
    with pytest.raises(SystemExit):
        parser().parse_args(["verify", "--differences", "0"])
    assert "at least 1" in capsys.readouterr().err
