# SPDX-License-Identifier: GPL-2.0-only
"""QEMU takes the command line of a VM that was imported."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings
from colo_ebpf.control.qemu import cmdline
from colo_ebpf.convert import configuration, domain, proxmox, strict_xml
from colo_ebpf.convert.imported import Imported
from colo_ebpf.model import VmRole
from tests.capabilities import GUEST, ROOT, require

VMS = ROOT / "tests" / "unit" / "vms"


def _libvirt() -> Imported:
    return domain.imported_from(strict_xml.element((VMS / "web.xml").read_bytes()), (7, 2))


def _proxmox() -> Imported:
    said = [(VMS / name).read_text() for name in ("101.cmd", "101.conf")]
    return proxmox.imported_from(said[0].replace("pc-i440fx-9.0", "pc"), said[1], (7, 2))


def _here(found: Imported, at: Path) -> Config:
    """With disks, flash and sockets in a directory, and a CPU that TCG has."""
    parsed = parse_config(configuration.text(found.vm, at / "x.toml"), at / "x.toml")
    disks = []
    for number, disk in enumerate(parsed.vm.disk):
        path = at / f"disk{number}"
        words = ["qemu-img", "create", "-q", "-f", disk.format, str(path), "1M"]
        subprocess.run(words, check=True)
        disks.append(msgspec.structs.replace(disk, path=str(path)))
    change: dict[str, object] = {}
    if parsed.vm.firmware:
        (at / "vars.fd").write_bytes((GUEST / "OVMF_VARS_4M.fd").read_bytes())
        change = {"firmware": str(GUEST / "OVMF_CODE_4M.fd"), "firmware_vars": str(at / "vars.fd")}
    args = [
        word.replace(f"/run/colo-ebpf/{parsed.vm.name}", str(at)) for word in parsed.vm.extra_args
    ]
    vm = msgspec.structs.replace(
        parsed.vm, disk=disks, cpu="max", memory_mib=64, extra_args=args, **change
    )
    host = msgspec.structs.replace(parsed.host, run_dir=str(at))
    return msgspec.structs.replace(parsed, vm=vm, host=host)


def _without_descriptors(word: str, at: Path) -> str:
    """A daemon opens taps and sockets for its QEMU; here are hubs and paths in their place."""
    word = re.sub(r"^tap,id=net(\d+),fds?=.*$", r"hubport,id=net\1,hubid=\1", word)
    return re.sub(r"^socket,id=(\w+),fd=\d+", rf"socket,id=\1,path={at}/\1", word)


@pytest.mark.parametrize("made", [_libvirt, _proxmox])
def test_qemu_takes_it(made: object, tmp_path: Path) -> None:
    require("qemu", "guest")
    assert callable(made)
    spec = settings.vm_spec(_here(made(), tmp_path), "tcg")
    for end in ("in", "out"):
        os.mkfifo(f"{cmdline.events_path(spec, 'a/1')}.{end}")
    protocols = ("file",) * len(spec.disks)
    line = cmdline.command_line(spec, VmRole.PRIMARY, "a/1", protocols)
    cmdline.own_directory(spec).mkdir()
    line = [_without_descriptors(word, tmp_path) for word in line]
    talk = ["-qmp", "stdio"]
    said = '{"execute": "qmp_capabilities"} {"execute": "quit"}'
    done = subprocess.run(
        [*line, *talk], input=said, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"reason": "host-qmp-quit"' in done.stdout
