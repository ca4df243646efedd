# SPDX-License-Identifier: GPL-2.0-only
"""The watchdog device of Linux: a daemon that hangs where the VM serves resets its host.

The device is open, and thereby armed, only while the VM here may speak. It is disarmed by the
magic close. A daemon that dies or hangs does not do that: unless the next one takes over in time,
the host is reset. Nothing relies on it: a plane without its daemon withholds what is not compared.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.errors import WatchdogError
from colo_ebpf.model import Mode

SPEAKS = (Mode.PRIMARY, Mode.SOLO)
GETSUPPORT, SETTIMEOUT, GETTIMEOUT = 0x80285700, 0xC0045706, 0x80045707  # linux/watchdog.h
CAN_SET_TIMEOUT, MAGIC_CLOSE = 0x0080, 0x0100
_INFO = struct.Struct("=II32s")  # struct watchdog_info
_FIRST_DEVICE = os.makedev(10, 130)  # /dev/watchdog, another name of watchdog0
_ALIVE, _DISARM = b"\0", b"V"
_log = logging.getLogger(__name__)

Ioctl = Callable[[int, int, bytearray], None]


def _ioctl(fd: int, request: int, data: bytearray) -> None:
    fcntl.ioctl(fd, request, data, True)


class Watchdog:
    """One device, or none if its name is empty."""

    def __init__(
        self,
        device: str,
        timeout_s: int,
        *,
        ioctl: Ioctl = _ioctl,
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._device, self._timeout_s = device, timeout_s
        self._ioctl, self._sysfs = ioctl, sysfs
        self._fd: int | None = None
        self._tried_ns: int | None = None
        self._trouble = ""

    def check(self) -> None:
        """Before anything starts: can it do what is needed? Leaves it disarmed, also by an earlier
        run. Raises WatchdogError."""
        if not self._device:
            return
        self.look()
        self._close(self._armed())

    def look(self) -> None:
        """What can be told without opening, and thereby arming it. Raises WatchdogError."""
        if self._stays_armed():
            raise WatchdogError(
                f"{self._device}: nowayout is set: it could not be disarmed when the VM moves; "
                "load its driver with nowayout=0, or empty watchdog.device"
            )

    def feed(self, mode: Mode, now_ns: int) -> None:
        """In every beat. Never raises: without it the VM is as safe as with it."""
        if not self._device:
            return
        if mode not in SPEAKS:
            self.disarm()
            return
        due_ns = self._timeout_s * 1_000_000_000 // 4
        if self._tried_ns is not None and now_ns - self._tried_ns < due_ns:
            return
        self._tried_ns = now_ns
        try:
            if self._fd is None:
                self._fd = self._armed()
                _log.info("%s: armed, %d s", self._device, self._timeout_s)
            os.write(self._fd, _ALIVE)
        except OSError as e:
            self._warn(f"{self._device}: cannot be fed: {e.strerror}")
        except WatchdogError as e:
            self._warn(str(e))
        else:
            self._trouble = ""

    def disarm(self) -> None:
        """The VM here may not speak, or the daemon ends in good order."""
        fd, self._fd, self._tried_ns = self._fd, None, None
        if fd is None:
            return
        try:
            self._close(fd)
            _log.info("%s: disarmed", self._device)
        except WatchdogError as e:
            self._warn(str(e))

    def _warn(self, trouble: str) -> None:
        """Once, not in every beat."""
        if trouble != self._trouble:
            _log.warning("%s", trouble)
        self._trouble = trouble

    def _stays_armed(self) -> bool:
        """The kernel says that no close disarms it (it need not say anything)."""
        try:
            number = os.stat(self._device).st_rdev
        except OSError as e:
            raise WatchdogError(f"watchdog.device: {self._device}: {e.strerror}") from e
        entry = self._sysfs / "dev" / "char" / f"{os.major(number)}:{os.minor(number)}"
        if number == _FIRST_DEVICE:
            entry = self._sysfs / "class" / "watchdog" / "watchdog0"
        try:
            return (entry / "nowayout").read_text().strip() == "1"
        except OSError:
            return False

    def _armed(self) -> int:
        """Open it, which arms it, with the timeout that is asked for."""
        try:
            fd = os.open(self._device, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as e:
            raise WatchdogError(
                f"watchdog.device: {self._device}: {e.strerror} (only one may use it: another "
                "VM's daemon, or systemd's RuntimeWatchdogSec)"
            ) from e
        try:
            self._set_up(fd)
        except BaseException:
            self._close(fd)
            raise
        return fd

    def _set_up(self, fd: int) -> None:
        """Raises WatchdogError unless it says itself that it will do what is asked."""
        info = bytearray(_INFO.size)
        try:
            self._ioctl(fd, GETSUPPORT, info)
            options = _INFO.unpack(info)[0]
            if not options & CAN_SET_TIMEOUT or not options & MAGIC_CLOSE:
                raise WatchdogError(
                    f"{self._device}: its driver has no settable timeout and magic close: "
                    "use another device (softdog has both)"
                )
            self._ioctl(fd, SETTIMEOUT, bytearray(struct.pack("=i", self._timeout_s)))
            answer = bytearray(4)
            self._ioctl(fd, GETTIMEOUT, answer)
        except OSError as e:
            raise WatchdogError(
                f"{self._device}: does not take a timeout of {self._timeout_s} s: {e.strerror}"
            ) from e
        (taken_s,) = struct.unpack("=i", answer)
        if taken_s != self._timeout_s:
            raise WatchdogError(
                f"{self._device}: took a timeout of {taken_s} s instead of {self._timeout_s}: "
                "set watchdog.timeout-s to one that it can do"
            )

    def _close(self, fd: int) -> None:
        try:
            os.write(fd, _DISARM)
        except OSError as e:
            raise WatchdogError(
                f"{self._device}: cannot be disarmed: {e.strerror}: this host may be reset in "
                f"{self._timeout_s} s"
            ) from e
        finally:
            os.close(fd)
