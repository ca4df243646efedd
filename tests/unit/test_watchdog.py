# SPDX-License-Identifier: GPL-2.0-only
"""The watchdog device: a FIFO takes what is written, a toy driver answers what is asked."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.host import watchdog
from colo_ebpf.control.host.watchdog import Watchdog
from colo_ebpf.errors import ConfigError, WatchdogError
from colo_ebpf.model import Mode

S = 1_000_000_000
NOW = 1_000 * S


@dataclass
class Driver:
    """Of the device."""

    options: int = watchdog.CAN_SET_TIMEOUT | watchdog.MAGIC_CLOSE
    step_s: int = 1  # of the timeouts it can do
    timeout_s: int = 60

    def ioctl(self, fd: int, request: int, data: bytearray) -> None:
        """As the kernel does it."""
        assert fd >= 0
        if request == watchdog.GETSUPPORT:
            data[:] = struct.pack("=II32s", self.options, 0, b"toy")
        elif request == watchdog.SETTIMEOUT:
            (wanted,) = struct.unpack("=i", data)
            self.timeout_s = -(-wanted // self.step_s) * self.step_s
        else:
            data[:] = struct.pack("=i", self.timeout_s)


class Device:
    """Where it is, and what was written to it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def written(self) -> bytes:
        """Since it was asked last."""
        try:
            return os.read(self._fd, 100)
        except BlockingIOError:
            return b""

    def gone(self) -> None:
        """Nothing can be written any more."""
        os.close(self._fd)
        self._fd = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """At the test's end."""
        os.close(self._fd)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A FIFO in its place."""
    found = Device(tmp_path / "watchdog")
    yield found
    found.close()


def test_it_is_fed_four_times_in_its_period_while_the_vm_may_speak(device: Device) -> None:
    dog = Watchdog(device.path, 40, ioctl=Driver().ioctl)
    for mode in (Mode.SECONDARY, Mode.WITHHOLD, Mode.PAIRING):
        dog.feed(mode, NOW)
    assert device.written() == b""
    dog.feed(Mode.SOLO, NOW)
    assert device.written() == b"\0"
    dog.feed(Mode.PRIMARY, NOW + 10 * S - 1)
    assert device.written() == b""
    dog.feed(Mode.PRIMARY, NOW + 10 * S)
    assert device.written() == b"\0"


def test_it_is_disarmed_once_when_the_vm_may_not_speak_and_armed_at_once_again(
    device: Device,
) -> None:
    dog = Watchdog(device.path, 40, ioctl=Driver().ioctl)
    dog.feed(Mode.SOLO, NOW)
    dog.feed(Mode.WITHHOLD, NOW + 1)
    dog.feed(Mode.WITHHOLD, NOW + 2)
    assert device.written() == b"\0V"
    dog.feed(Mode.SOLO, NOW + 3)
    dog.disarm()
    assert device.written() == b"\0V"


def test_a_daemon_that_dies_leaves_it_armed_and_the_next_one_disarms_it(device: Device) -> None:
    driver = Driver()
    dead = Watchdog(device.path, 40, ioctl=driver.ioctl)
    dead.feed(Mode.SOLO, NOW)
    assert device.written() == b"\0"
    Watchdog(device.path, 40, ioctl=driver.ioctl).check()
    assert device.written() == b"V"
    dead.disarm()


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (Driver(step_s=30), "took a timeout of 60 s instead of 40"),
        (Driver(options=watchdog.MAGIC_CLOSE), "no settable timeout and magic close"),
        (Driver(options=watchdog.CAN_SET_TIMEOUT), "no settable timeout and magic close"),
    ],
)
def test_one_that_does_not_do_what_is_asked_is_refused_and_left_disarmed(
    device: Device, driver: Driver, says: str
) -> None:
    with pytest.raises(WatchdogError, match=says):
        Watchdog(device.path, 40, ioctl=driver.ioctl).check()
    assert device.written() == b"V"


def test_what_is_no_watchdog_is_refused(device: Device, tmp_path: Path) -> None:
    with pytest.raises(WatchdogError, match="does not take a timeout of 40 s"):
        Watchdog(device.path, 40).check()
    with pytest.raises(WatchdogError, match="none: No such file"):
        Watchdog(str(tmp_path / "none"), 40).check()


def test_one_that_cannot_be_disarmed_is_never_opened(device: Device, tmp_path: Path) -> None:
    entry = tmp_path / "dev" / "char" / "0:0"
    entry.mkdir(parents=True)
    for text, refused in (("0\n", False), ("1\n", True)):
        (entry / "nowayout").write_text(text)
        dog = Watchdog(device.path, 40, ioctl=Driver().ioctl, sysfs=tmp_path)
        if refused:
            with pytest.raises(WatchdogError, match="nowayout is set"):
                dog.check()
            assert device.written() == b""
        else:
            dog.check()
            assert device.written() == b"V"


def test_trouble_with_it_is_told_once_and_never_ends_the_daemon(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    dog = Watchdog(device.path, 40, ioctl=Driver().ioctl)
    dog.feed(Mode.SOLO, NOW)
    device.gone()
    for beat in range(3):
        dog.feed(Mode.SOLO, NOW + (10 + 10 * beat) * S)
    dog.disarm()
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.split(": ")[1] for text in messages] == ["cannot be fed", "cannot be disarmed"]


def test_one_that_is_busy_is_tried_again(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    driver, busy = Driver(), True

    def ioctl(fd: int, request: int, data: bytearray) -> None:
        if busy:
            raise OSError(errno.EBUSY, "busy")
        driver.ioctl(fd, request, data)

    dog = Watchdog(device.path, 40, ioctl=ioctl)
    dog.feed(Mode.SOLO, NOW)
    assert "does not take a timeout" in caplog.text
    assert device.written() == b"V"
    busy = False
    dog.feed(Mode.SOLO, NOW + 1)
    assert device.written() == b""
    dog.feed(Mode.SOLO, NOW + 10 * S)
    assert device.written() == b"\0"
    dog.disarm()


def test_without_a_device_nothing_is_done() -> None:
    dog = Watchdog("", 40)
    dog.check()
    dog.feed(Mode.SOLO, NOW)
    dog.disarm()


def test_the_table_of_the_configuration_reaches_it(device: Device) -> None:
    text = f'{EXAMPLE}\n[watchdog]\ndevice = "{device.path}"\ntimeout-s = 20\n'
    dog = settings.watchdog(parse_config(text, Path("file")))
    with pytest.raises(WatchdogError, match="a timeout of 20 s"):
        dog.check()
    with pytest.raises(ConfigError, match=r"watchdog\.timeout-s: .*>= 10"):
        parse_config(text.replace("= 20", "= 9"), Path("file"))
