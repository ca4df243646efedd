# SPDX-License-Identifier: GPL-2.0-only
"""Programs on TCX hooks, each held by a pinned bpf_link (kernel 6.6 and later).

A clsact filter goes with its qdisc: ``tc qdisc del dev tap0 clsact``, by whomever, and every frame
leaves without having been compared. A link is taken off by nobody but its owner. TCX programs run
before clsact filters; ``TC_ACT_UNSPEC`` hands the frame to the next one. Source:
``include/uapi/linux/bpf.h`` (BPF_LINK_CREATE), ``kernel/bpf/tcx.c``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from colo_ebpf.datapath.bpf import syscalls
from colo_ebpf.datapath.net import netdev
from colo_ebpf.datapath.net.hooks import Filter, Hook
from colo_ebpf.errors import AttachError, DatapathError

DIRECTORY = "links"  # below the VM's pins
TYPE = {Hook.INGRESS: 46, Hook.EGRESS: 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
_BEFORE, _AFTER = 1 << 3, 1 << 4  # BPF_F_BEFORE, BPF_F_AFTER: of all that are there
_LOOPBACK = 1


def available() -> bool:
    """Does this kernel have TCX hooks? Asked of the loopback device; nothing is changed."""
    try:
        syscalls.programs_at(_LOOPBACK, TYPE[Hook.INGRESS])
    except DatapathError:
        return False
    return True


def detach(pins: Path) -> None:
    """Take off every program that is held by a link pinned there, of whichever version."""
    directory = pins / DIRECTORY
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        link = syscalls.obj_get(str(path))
        try:
            syscalls.link_detach(link)
        finally:
            os.close(link)
        path.unlink()
    directory.rmdir()


class Links:
    """The links of one VM, by the name of their pin. They are open here as well: who removes the
    pins of a running daemon takes no program off."""

    def __init__(self, pins: Path) -> None:
        self._directory = pins / DIRECTORY
        self._fds: dict[str, int] = {}

    def attach(self, one: Filter, fd: int) -> None:
        """Put the program there; in place of ours, in one step, if that is there.

        Raises AttachError if the kernel refuses.
        """
        index = netdev.index_of(one.device)
        try:
            if not self._replace(one, fd, index):
                self._create(one, fd, index)
            self.pin(one)
        except (DatapathError, OSError) as e:
            raise AttachError(f"{one}: attach {one.program}: {e}") from e

    def _replace(self, one: Filter, fd: int, index: int) -> bool:
        """False: there is no link, or its device is gone."""
        link = self._open(one.pin)
        if link is None:
            return False
        if syscalls.link_ifindex(link) == index:
            try:
                syscalls.link_update(link, fd)
            except DatapathError as e:
                if not _is(e, errno.ENOLINK):
                    raise
            else:
                return True
        self._drop(one.pin)
        return False

    def _create(self, one: Filter, fd: int, index: int) -> None:
        flags = _BEFORE if one.runs_first else _AFTER
        self._fds[one.pin] = syscalls.link_create(fd, index, TYPE[one.hook], flags)

    def _open(self, pin: str) -> int | None:
        path = self._directory / pin
        if pin not in self._fds and path.exists():
            self._fds[pin] = syscalls.obj_get(str(path))
        return self._fds.get(pin)

    def pin(self, one: Filter) -> None:
        """Have it outlive the daemon. Does nothing if it does already."""
        path = self._directory / one.pin
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            syscalls.obj_pin(self._fds[one.pin], str(path))

    def pinned(self, one: Filter) -> bool:
        """Will it outlive the daemon?"""
        return (self._directory / one.pin).exists()

    def runs(self, one: Filter, number: int) -> bool:
        """Is the program of this number there?"""
        return number in self._there(one)

    def precedes(self, one: Filter, number: int) -> int:
        """The number of another's program that runs before one that is to be first; 0: none."""
        there = self._there(one)
        return there[0] if one.runs_first and there and there[0] != number else 0

    def _there(self, one: Filter) -> tuple[int, ...]:
        link = self._open(one.pin)
        index = syscalls.link_ifindex(link) if link is not None else 0
        return syscalls.programs_at(index, TYPE[one.hook]) if index else ()

    def _drop(self, pin: str) -> None:
        os.close(self._fds.pop(pin))
        (self._directory / pin).unlink(missing_ok=True)

    def remove(self) -> None:
        """Take every program off."""
        detach(self._directory.parent)
        self.close()

    def close(self) -> None:
        """What is pinned goes on."""
        while self._fds:
            with contextlib.suppress(OSError):
                os.close(self._fds.popitem()[1])


def _is(error: DatapathError, number: int) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == number
