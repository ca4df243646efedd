# SPDX-License-Identifier: GPL-2.0-only
"""A disk that is one and the same on both hosts, as QEMU is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.decision.compatibility import difference
from colo_ebpf.control.qemu import cmdline
from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.control.qemu.old_content import OldContent
from colo_ebpf.control.qemu.own_compatibility import compatibility_of
from colo_ebpf.control.qemu.support import Use, refused
from colo_ebpf.errors import ConfigError, VmError
from colo_ebpf.model import VmRole
from colo_ebpf.storage.preflight import wrong_names


def _spec() -> VmSpec:
    spec = settings.vm_spec(parse_config(EXAMPLE, Path("example")), "kvm")
    (disk,) = spec.disks
    return replace(spec, disks=(replace(disk, shared=True),))


def _drives(role: VmRole) -> list[str]:
    line = cmdline.command_line(_spec(), role, "a/0123456789abcdef", ("host_device",))
    return [line[i + 1] for i, word in enumerate(line) if word == "-drive"]


@pytest.mark.parametrize("role", VmRole)
def test_the_disk_is_not_locked_nor_cached_and_what_fails_stops_the_vm(role: VmRole) -> None:
    image, *_, device = _drives(role)
    assert image.endswith(",file.locking=off,cache.direct=on")
    assert "werror=stop,rerror=report" in device


def test_the_hidden_overlay_is_copied_to_on_read() -> None:
    _, hidden, device = _drives(VmRole.SECONDARY)
    assert "node-name=hidden0," in hidden
    assert hidden.endswith("hidden0.qcow2,backing=parent0,copy-on-read=on")
    assert device.endswith("file.children.0=parent0"), "until it is put above the overlays"
    assert len(_drives(VmRole.PRIMARY)) == 2


def test_a_host_that_copies_is_not_paired_with_one_that_shares() -> None:
    (shared,) = _spec().disks
    names = [replace(shared, shared=False).export], [shared.export]
    assert wrong_names(*names, "b") != []


class _Monitors:
    """Of a QEMU in this state, with these jobs."""

    def __init__(self, status: str, jobs: set[str]) -> None:
        self.status, self.jobs = status, jobs
        self.did: list[str] = []

    async def run(self, command: str, **arguments: Any) -> Any:
        if command == "query-status":
            return {"status": self.status}
        if command == "query-jobs":
            return [{"id": job} for job in self.jobs]
        self.did.append(command)
        if command == "block-job-cancel":
            self.jobs.remove(arguments["device"])
        if command == "transaction":
            self.jobs |= {action["data"]["job-id"] for action in arguments["actions"]}
        return {}


def _old(monitors: _Monitors) -> OldContent:
    return OldContent(_spec(), "a/1", monitors)  # type: ignore[arg-type]


async def test_an_epoch_begins_with_new_jobs_and_other_jobs_stay() -> None:
    monitors = _Monitors("paused", {"colo-old0", "colo-sync1"})
    await _old(monitors).begin()
    assert monitors.did == ["block-job-cancel", "transaction"]
    assert monitors.jobs == {"colo-old0", "colo-sync1"}
    await _old(monitors).end()
    assert monitors.jobs == {"colo-sync1"}


@pytest.mark.parametrize("status", ["running", "io-error"])
async def test_none_begins_while_the_vm_runs_or_has_a_write_to_do(status: str) -> None:
    monitors = _Monitors(status, {"colo-old0"})
    with pytest.raises(VmError, match=f"no checkpoint of a shared disk: the VM is {status}"):
        await _old(monitors).begin()
    assert monitors.did == []


# --- the configuration ------------------------------------------------------------------------

_FENCED = '\n[fence]\ncommand = ["/etc/colo-ebpf/fence"]\nwhen = "before-solo"\n'


def _text(form: str = "raw", fence: str = _FENCED) -> str:
    return EXAMPLE.replace('format = "raw"', f'format = "{form}"\nx-shared = true') + fence


def test_a_disk_is_said_to_be_shared() -> None:
    config = parse_config(_text(), Path("x"))
    (disk,) = settings.vm_spec(config, "kvm").disks
    assert disk.shared
    assert settings.who(config).shares_disk
    plain = parse_config(EXAMPLE, Path("x"))
    assert not settings.who(plain).shares_disk


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_text("qcow2"), "vm.disk.x-shared: .*web.raw is qcow2: only a raw disk"),
        (_text(fence=""), "vm.disk.x-shared needs fence.reservation, or fence.when"),
        (_text(fence=_FENCED.replace("before", "after")), "the other one must not any more"),
    ],
)
def test_what_does_not_go_with_it_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(text, Path("x"))


@pytest.mark.parametrize(
    ("version", "says"), [((7, 2, 22), ""), ((10, 0, 8), ""), ((9, 2, 0), "QEMU 7.2 and 10.0")]
)
def test_only_a_qemu_that_was_tried_shares_a_disk(version: tuple[int, int, int], says: str) -> None:
    assert says in refused(version, Use("q", shares_disk=True))
    assert refused(version, Use("q")) == ""


async def test_hosts_whose_disks_have_other_names_are_not_paired(tmp_path: Path) -> None:
    names = []
    for host in ("a", "b"):
        disk = tmp_path / f"{host}.raw"
        disk.write_bytes(bytes(1 << 20))
        text = _text().replace("/var/lib/colo-ebpf/web.raw", str(disk))
        names.append(await compatibility_of(parse_config(text, Path("x")), "kvm"))
    said = difference(*names, "a", "b")
    assert said.startswith("name of shared disk 0 is ")


async def test_hosts_of_which_one_reserves_the_disk_are_not_paired(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    said = []
    for fence in (_FENCED, "\n[fence]\nreservation = true\n"):
        text = _text(fence=fence).replace("/var/lib/colo-ebpf/web.raw", str(disk))
        said.append(await compatibility_of(parse_config(text, Path("x")), "kvm"))
    assert difference(*said, "a", "b") == "fence.reservation is false on a and true on b"
