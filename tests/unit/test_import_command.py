# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf import-libvirt` and `import-proxmox`: what they ask, write and refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from colo_ebpf.cli import main
from colo_ebpf.config.reading import load_config, parse_config
from tests.unit.test_import import SMALL, VMS


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is first in PATH."""
    found = tmp_path / "bin"
    found.mkdir()
    monkeypatch.setenv("PATH", f"{found}:{os.environ['PATH']}")
    return found


def _tool(at: Path, script: str) -> None:
    at.write_text(f"#!/bin/sh\n{script}\n")
    at.chmod(0o755)


def test_the_command_asks_libvirt_and_writes_a_file(
    tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _tool(tools / "virsh", f'echo "$@" >{tmp_path}/asked; cat {VMS}/web.xml')
    out = tmp_path / "web.toml"
    assert main.main(["import-libvirt", "web", "--output", str(out)]) == main.Exit.FAILED
    asked = (tmp_path / "asked").read_text()
    assert asked == "--readonly --connect qemu:///system dumpxml --domain=web\n"
    assert load_config(out).vm.name == "web-shop"
    told = capsys.readouterr()
    assert told.out == ""
    assert "CANNOT hostdev pci: " in told.err
    assert "web-shop, imported; what follows [host] has to be filled in" in told.err


def test_the_command_asks_proxmox(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _tool(
        tools / "qm", f"case $1 in showcmd) cat {VMS}/101.cmd;; config) cat {VMS}/101.conf;; esac"
    )
    assert main.main(["import-proxmox", "101", "--json"]) == main.Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert said["vm"] == "mail"
    assert parse_config(said["configuration"], Path("x")).vm.nic[1].bridge == "vmbr1"
    assert {one["weight"] for one in said["remarks"]} == {"CANNOT", "NOTE"}


def test_nothing_lost_is_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.xml"
    file.write_text(SMALL)
    assert main.main(["import-libvirt", str(file)]) == 0
    assert parse_config(capsys.readouterr().out, Path("x")).vm.name == "web"


@pytest.mark.parametrize(
    ("words", "script", "told"),
    [
        ("import-libvirt web", "echo no such domain >&2; exit 1", "web: virsh failed: no such dom"),
        ("import-libvirt web", "exit 7", "web: virsh failed: exit code 7"),
        ("import-libvirt web", "echo '<dom'", "web: not valid XML: unclosed token"),
        ("import-libvirt /nonexistent.xml", "", "/nonexistent.xml: No such file or directory"),
        ("import-libvirt /", "", "/: Is a directory"),
        ("import-proxmox /dev/null", "", "/dev/null: no command line of QEMU"),
        ("import-proxmox 7", "", "7: qm is not installed here: name a file with its output"),
    ],
)
def test_a_failure_is_one_sentence_and_writes_nothing(
    tools: Path, capsys: pytest.CaptureFixture[str], words: str, script: str, told: str
) -> None:
    tmp_path = tools.parent
    _tool(tools / "virsh", script)
    out = tmp_path / "out.toml"
    assert main.main([*words.split(), "--output", str(out)]) == main.Exit.REFUSED
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [tools]


def test_a_file_that_is_there_is_kept_unless_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "small.xml", tmp_path / "out.toml"
    file.write_text(SMALL)
    out.write_text("mine")
    words = ["import-libvirt", str(file), "--output", str(out)]
    assert main.main(words) == main.Exit.REFUSED
    assert out.read_text() == "mine"
    assert "Overwrite" in capsys.readouterr().err
    assert main.main([*words, "--yes"]) == 0
    assert load_config(out).vm.name == "web"
