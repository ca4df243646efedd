# SPDX-License-Identifier: GPL-2.0-only
"""Whether an accelerator works: by a guest of our own. TCG stands in for a KVM that works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import accel, boot_probe
from tests.capabilities import ROOT, require

QEMU = "qemu-system-x86_64"


def _needs_kvm_device() -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/kvm")


async def test_an_accelerator_that_works_passes_every_step() -> None:
    require("qemu")
    assert await boot_probe.fails(QEMU, "tcg", "max") == ""


@pytest.mark.parametrize(
    ("cpu", "step"),
    [("qemu32", "32-bit code"), ("max,sse=off,sse2=off", "SSE"), ("max,apic=off", "a timer inter")],
)
async def test_the_first_step_that_fails_is_named(
    cpu: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32-bit code: it finds that there are no 64 bits. SSE, APIC: it ends in a fault or a halt."""
    require("qemu")
    monkeypatch.setattr(boot_probe, "_DEADLINE_S", 3.0)
    assert (await boot_probe.fails(QEMU, "tcg", cpu)).startswith(f"it fails at {step}")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "it fails at 32-bit code"),
        ("printf ABCDEFG; exec sleep 60", "it does not end"),
        ("printf ABC; echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60", "fails at SSE"),
        ("printf ABCDEFG", "it does not end"),
        ("exit 1", "it fails at 32-bit code"),
    ],
)
async def test_a_qemu_that_stands_or_ends_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(boot_probe, "_DEADLINE_S", 0.5)
    fake = tmp_path / "qemu"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    assert words in await boot_probe.fails(str(fake), "kvm", "host")
    assert "No such file" in await boot_probe.fails(str(tmp_path / "none"), "kvm", "host")


def _fails(words: str, asked: list[str]) -> Callable[[str, str, str], object]:
    async def fails(_qemu: str, wanted: str, _cpu: str) -> str:
        asked.append(wanted)
        return words

    return fails


@pytest.mark.parametrize(
    ("kernel", "answers", "wanted"),
    [
        ("", ("", False), ("kvm", "a probe booted")),
        ("", ("it fails at SSE", False), ("tcg", "KVM runs no guest here: it fails at SSE")),
        ("/vmlinuz", ("", True), ("kvm", "a probe booted")),
        ("/vmlinuz", ("", False), ("tcg", "KVM does not boot the kernel")),
        ("/vmlinuz", ("no memory", True), ("tcg", "KVM runs no guest here: no memory")),
    ],
)
async def test_auto_asks_kvm_whether_or_not_there_is_a_kernel(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    answers: tuple[str, bool],
    wanted: tuple[str, str],
) -> None:
    _needs_kvm_device()
    asked: list[str] = []

    async def boot(_qemu: str, _kernel: str) -> bool:
        return answers[1]

    monkeypatch.setattr(boot_probe, "fails", _fails(answers[0], asked))
    monkeypatch.setattr(accel, "_boots", boot)
    assert await accel.choose("auto", QEMU, kernel, tmp_path) == wanted
    assert await accel.choose("auto", QEMU, kernel, tmp_path) == wanted
    assert asked == ["kvm"], "the outcome is kept"


async def test_the_kvm_here_does_what_the_probe_says() -> None:
    """If it runs the probe it has to boot the test's kernel; a software KVM does neither."""
    require("qemu", "guest")
    _needs_kvm_device()
    kernel = str(ROOT / "build" / "guest" / "vmlinuz")
    failure = await boot_probe.fails(QEMU, "kvm", "host")
    assert (failure == "") is await accel._boots(QEMU, kernel), failure


def test_the_image_is_made_of_its_source(tmp_path: Path) -> None:
    made = tmp_path / "probe.bin"
    subprocess.run([ROOT / "guest" / "probe" / "build.sh", made], check=True)
    assert made.read_bytes() == boot_probe.IMAGE
