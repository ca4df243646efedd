# SPDX-License-Identifier: GPL-2.0-only
"""Reserving disks whose storage fails, or does not answer. What a real disk does with it:
tests/link/reservations.py."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.decision.actions import Reserve
from colo_ebpf.control.host.reservations import Reservations
from colo_ebpf.errors import ConfigError, StorageError
from colo_ebpf.storage import reservation
from tests.unit.toy_steps import steps_of

_SHARED = 'overlay-dir = "/dev/shm/colo-ebpf/web"', 'x-shared = true\noverlay-dir = "/dev/shm/x"'
OWN, OTHER = reservation.key_of("web", "a"), reservation.key_of("web", "b")


class _Disk:
    """What the kernel answers to each request, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: int | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []
        self.words: list[bytes] = []
        monkeypatch.setattr(fcntl, "ioctl", self._answer)

    def _answer(self, _fd: int, request: int, words: bytearray) -> int:
        self.asked.append(request & 0xFF)
        self.words.append(bytes(words))
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    return path


def test_keys_are_the_same_on_both_hosts_and_of_one_vm_alone() -> None:
    keys = {reservation.key_of(vm, host) for vm in ("web", "db") for host in ("a", "b")}
    assert len(keys) == 4
    assert all(0 < key < 1 << 64 for key in keys)


def test_the_requests_are_the_kernels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _Disk(monkeypatch, 0, 0x18, 0)
    reservation.take(path, OWN, OTHER)
    assert disk.asked == [200, 204, 201]
    assert disk.words == [
        struct.pack("=QQII", 0, OWN, 1, 0),
        struct.pack("=QQII", OWN, OTHER, 3, 0),
        struct.pack("=QII", OWN, 3, 0),
    ]


def test_another_key_of_this_host_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVMe says that it conflicts: the disk was another VM's before."""
    disk = _Disk(monkeypatch, 0x18, 0, 0, 0)
    reservation.take(path, OWN, OTHER)
    assert disk.asked == [200, 200, 204, 201]
    assert disk.words[1] == struct.pack("=QQII", OWN, OWN, 1, 0)


def test_attention_is_no_refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose registration was taken away is told so at its next request."""
    disk = _Disk(monkeypatch, 0x08000002, 0, 0, 0)
    reservation.take(path, OWN, OTHER)
    assert disk.asked == [200, 200, 204, 201]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([2, 2, 2], "registers no key for a reservation"),
        ([0, 0x22], "does not take the other host's reservation away .status 0x22"),
        ([0, 0x118, 0x118], "reserved by somebody who is neither of the two hosts"),
        ([0, 0x4083, 0x4083], "reserved by somebody who is neither of the two hosts"),
        ([0, 0, 0x22], "cannot be reserved .status 0x22"),
        ([OSError(errno.EPERM, "no")], "Linux 6.6 or later, and a whole disk"),
        ([OSError(errno.ENOTTY, "no")], "no SCSI, NVMe or multipath disk"),
        ([OSError(errno.EOPNOTSUPP, "no")], "no SCSI, NVMe or multipath disk"),
        ([OSError(errno.EINVAL, "no")], "keeps a key through a loss of power .APTPL.; leave"),
        ([OSError(errno.ENODEV, "it is gone")], "cannot be reserved: it is gone"),
    ],
)
def test_each_refusal_has_a_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int | OSError], says: str
) -> None:
    _Disk(monkeypatch, *answers)
    with pytest.raises(StorageError, match=f"disk {path}: .*{says}"):
        reservation.take(path, OWN, OTHER)


@pytest.mark.parametrize("status", [0, 0x18, 0x4083])
def test_a_try_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Whether or not this host is registered: it replaces its key by the same one, or by none."""
    disk = _Disk(monkeypatch, status)
    reservation.probe(path, OWN)
    assert disk.words == [struct.pack("=QQII", OWN, OWN, 0, 0)]


def test_a_try_says_what_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _Disk(monkeypatch, 2, 2, 2)
    with pytest.raises(StorageError, match="registers no key"):
        reservation.probe(path, OWN)


def test_a_disk_that_is_not_there_has_one_too(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened: No such file"):
        reservation.take(tmp_path / "none", OWN, OTHER)


def test_a_storage_that_does_not_answer_is_waited_for_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that hangs in the kernel cannot be ended, and no second one is begun beside it."""
    answers, calls = threading.Event(), []

    def take(*_: Any) -> None:
        calls.append(threading.current_thread())
        assert answers.wait(30)

    async def twice() -> None:
        reservations = Reservations((path,), OWN, OTHER, timeout_ms=20)
        for _ in range(3):
            with pytest.raises(StorageError, match="not reserved within 20 ms: no answer"):
                await reservations.take()
        answers.set()
        reservations.timeout_ms = 30_000
        await reservations.take()

    monkeypatch.setattr(reservation, "take", take)
    asyncio.run(twice())
    assert len(calls) == 1


def test_what_failed_is_begun_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _Disk(monkeypatch, OSError(errno.ENODEV, "gone"), 0, 0, 0)

    async def twice() -> None:
        reservations = Reservations((path,), OWN, OTHER, timeout_ms=30_000)
        with pytest.raises(StorageError, match="gone"):
            await reservations.take()
        await reservations.take()

    asyncio.run(twice())
    assert disk.asked == [200, 200, 204, 201]


def test_the_step_reserves(tmp_path: Path) -> None:
    taken = []

    async def reserve() -> None:
        taken.append(os.getpid())

    asyncio.run(steps_of(None, tmp_path, reserve=reserve).run(Reserve()))
    assert len(taken) == 1


def _configured(fence: str, shared: bool = True) -> str:
    text = EXAMPLE.replace(*_SHARED) if shared else EXAMPLE
    return f"{text}\n[fence]\n{fence}\n"


def test_it_stands_for_the_fence_of_a_shared_disk() -> None:
    config = parse_config(_configured("reservation = true"), Path("f"))
    assert settings.who(config).reserves
    made = settings.reservations(config)
    assert made.paths == (Path(config.vm.disk[0].path),)
    assert (made.own, made.other) == tuple(
        reservation.key_of(config.vm.name, one) for one in (config.host.name, config.peer.name)
    )


@pytest.mark.parametrize(
    ("fence", "shared", "says"),
    [
        ("reservation = true", False, "fence.reservation: no disk has x-shared"),
        ("", True, 'needs fence.reservation, or fence.when = "before-solo"'),
    ],
)
def test_one_without_the_other_is_refused(fence: str, shared: bool, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(_configured(fence, shared), Path("f"))
