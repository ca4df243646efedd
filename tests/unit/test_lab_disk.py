# SPDX-License-Identifier: GPL-2.0-only
"""The one disk of a lab: who keeps the other host off it, and that nobody's data is lost for it."""

from __future__ import annotations

import argparse
import tomllib
from typing import Any

import pytest

from colo_ebpf.cli import lab
from colo_ebpf.errors import ControlError, LabError
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.topology import Guest, Place, config_text

_LUNS = ("/dev/sdx", "/dev/sdy")


def _configured(**of_the_disk: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(("kernel", "initrd", "append", "preload"), "")
    plain |= {"memory_mib": 128, "accel": "tcg", "address": "192.0.2.1"}
    guest = Guest(**plain, **of_the_disk)
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
