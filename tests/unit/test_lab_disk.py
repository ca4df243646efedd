# SPDX-License-Identifier: GPL-2.0-only
"""The one disk of a lab: who keeps the other host off it, and that nobody's data is lost for it."""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import lab
from colo_ebpf.errors import ControlError, LabError
from colo_ebpf.lab import lab as labs
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.topology import Guest, Place, config_text

_LUNS = ("/dev/sdx", "/dev/sdy")


def _guest(**of_the_disk: Any) -> Guest:
    plain: dict[str, Any] = dict.fromkeys(("kernel", "initrd", "append", "preload"), "")
    return Guest(**plain, memory_mib=128, accel="tcg", address="192.0.2.1", **of_the_disk)


def _configured(**of_the_disk: Any) -> dict[str, Any]:
    guest = _guest(**of_the_disk)
    return tomllib.loads(config_text(Place("t", "a"), guest, "file", "none", {}))


def test_hosts_of_luns_reserve_them_and_turn_nobody_off() -> None:
    config = _configured(shared_disk=True, luns=_LUNS)
    assert config["fence"] == {"reservation": True}
    assert config["vm"]["disk"][0]["x-shared"] is True


def test_a_file_that_both_hosts_have_needs_a_fence() -> None:
    fence = _configured(shared_disk=True)["fence"]
    assert (fence["when"], "reservation" in fence) == ("before-solo", False)


def test_a_disk_of_each_host_needs_neither() -> None:
    assert "fence" not in _configured()


def test_only_a_device_can_be_reserved() -> None:
    with pytest.raises(LabError, match="guest: /etc/hostname is no block device"):
        choose(Wanted(kernel="/etc/hostname", luns=("/etc/hostname", "/dev/sdy")))


@pytest.mark.parametrize("verb", ["up", "demo"])
def test_nobodys_lun_is_overwritten_unasked(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--yes", action="store_true")
    lab.add_verbs(parser.add_subparsers(), common)
    args = parser.parse_args(["lab", verb, "--luns", *_LUNS])
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ControlError, match=r"What is on /dev/sdx is lost\. Go on\?"):
        args.verb(args)


@pytest.mark.parametrize("image", [False, True])
def test_a_lun_begins_with_what_the_guest_expects(tmp_path: Path, image: bool) -> None:
    lun, disk = tmp_path / "lun", tmp_path / "disk"
    lun.write_bytes(b"x" * (3 << 20))
    disk.write_bytes(b"boot" * 1000)
    guest = _guest(disk=str(disk)) if image else _guest(disk_bytes=(1 << 20) + 5)
    labs._fill(lun, guest)
    begins = disk.read_bytes() if image else bytes((1 << 20) + 5)
    assert lun.read_bytes() == begins + b"x" * ((3 << 20) - len(begins))


def test_a_lun_that_somebody_reserved_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuses)
    lun = tmp_path / "lun"
    lun.touch()
    with pytest.raises(LabError, match=r"lun: cannot be written: .* another initiator may have"):
        labs._fill(lun, _guest(disk_bytes=512))
