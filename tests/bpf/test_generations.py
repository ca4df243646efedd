# SPDX-License-Identifier: GPL-2.0-only
"""A daemon of another version never puts its programs beside, or in place of, those of a VM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath import upgrade
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import netdev
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.errors import LoadError
from colo_ebpf.model import Mode
from tests.bpf.attached import attached
from tests.bpf.rig import Rig
from tests.capabilities import require

_FLOWS = 512  # a rig of its own: its pins do not outlive these tests


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A host whose VM runs."""
    require("root", "bpf")
    with Rig(flows=_FLOWS) as rig:
        rig.pair(7)
        yield rig
    rig.close()


@pytest.fixture(params=[abi.ABI_VERSION - 1, abi.ABI_VERSION + 1])
def version(request: pytest.FixtureRequest) -> int:
    """Of the daemon that comes next."""
    return int(request.param)


def _filters() -> list[dict[str, list[str]]]:
    return [attached(device) for device in ("tap0", "tap1", "vx0")]


def test_a_vm_on_a_plane_of_another_version_is_left_alone(
    rig: Rig, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters, spec = _filters(), rig.plane._spec
    theirs = abi.ABI_VERSION
    monkeypatch.setattr(abi, "ABI_VERSION", version)
    with pytest.raises(LoadError) as caught:
        DataPlane.open(spec)
    said = str(caught.value)
    assert f"a VM runs on tap0 with a data plane of version {theirs}, this daemon" in said
    assert f"is of version {version}: nothing was changed" in said
    assert _filters() == filters
    assert not pin_directory(spec.bpffs, spec.vm).exists()
    assert (rig.plane.turn().epoch, rig.plane.mode()) == (7, Mode.PRIMARY)


def test_without_a_vm_it_is_cleared_away_and_the_new_one_loaded(
    rig: Rig, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, old = rig.plane._spec, rig._pins
    monkeypatch.setattr(abi, "ABI_VERSION", version)
    with Path(os.devnull).open("rb") as null:
        for tap in (rig.tap, rig.tap1):
            os.dup2(null.fileno(), tap)  # its VM is gone
    plane = DataPlane.open(spec)
    assert [attached(tap) for tap in ("tap0", "tap1")] == [{}, {}]
    assert not netdev.exists("vx0"), "it may lack what the new one wants of it"
    assert not old.exists()
    assert upgrade.others(spec.bpffs, spec.vm) == []
    assert (plane.turn().epoch, plane.mode()) == (0, Mode.WITHHOLD)
    plane.close()
    shutil.rmtree(pin_directory(spec.bpffs, spec.vm))


def test_other_vms_are_no_concern(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abi, "ABI_VERSION", abi.ABI_VERSION + 1)
    assert upgrade.others(rig.plane._spec.bpffs, "t") == [rig._pins]
    assert upgrade.others(rig.plane._spec.bpffs, "u") == []
