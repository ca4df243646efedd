# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's own `colo-compare`, alone: a diskless QEMU, four sockets, no guest.

Source of the wire format: QEMU net/colo-compare.c and docs/colo-proxy.txt: each frame with its
length, big-endian, before it. With `notify_dev` it says DO_CHECKPOINT there instead of asking a
migration for one.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import time
from pathlib import Path

from colo_ebpf.errors import BenchError

_START_S = 20.0
_MARK = bytes.fromhex("020000000099020000000088") + b"\x08\x06"  # ARP: passes at once, uncompared
_NEVER_MS = 3_600_000
NO_TIMEOUT = f"compare_timeout={_NEVER_MS},expired_scan_cycle=100000"


class QemuCompare:
    """`with QemuCompare(directory) as compare`; frames are bytes from the Ethernet header on.

    `options`: further ones of the object; without any it has QEMU's own timeouts.
    """

    def __init__(self, directory: Path, options: str = "") -> None:
        self._directory, self._options = directory, options

    def __enter__(self) -> QemuCompare:
        names = ("primary", "secondary", "out", "notify")
        argv = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
        for name in names:
            path = self._directory / name
            path.unlink(missing_ok=True)
            argv += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
        compare = (
            "colo-compare,id=comp0,primary_in=primary,secondary_in=secondary,outdev=out,"
            "iothread=io0,notify_dev=notify"
        )
        compare += f",{self._options}" if self._options else ""
        argv += ["-object", "iothread,id=io0", "-object", compare]
        self._log = (self._directory / "qemu.log").open("wb")
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self._buffers = dict.fromkeys(names, b"")
        self._ends: dict[str, socket.socket] = {}
        try:
            for name in names:
                self._ends[name] = self._connect(self._directory / name)
            self._until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _until_it_listens(self) -> None:
        """A frame that leaves before QEMU has accepted the connection to `out` is lost."""
        deadline = time.monotonic() + _START_S
        out = select.poll()
        out.register(self._ends["out"], select.POLLIN)
        while not out.poll(50):
            if time.monotonic() > deadline:
                raise BenchError(f"colo-compare does not answer: see {self._directory}/qemu.log")
            self.primary(_MARK + bytes(46))

    def __exit__(self, *_: object) -> None:
        for end in self._ends.values():
            end.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + _START_S
        while True:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                end.connect(str(path))
            except OSError:
                end.close()
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log = self._directory / "qemu.log"
                    raise BenchError(f"{path}: QEMU does not listen: {log.read_text()}") from None
                time.sleep(0.01)  # nothing tells that QEMU listens
                continue
            end.settimeout(_START_S)
            return end

    @property
    def pid(self) -> int:
        """Of the QEMU."""
        return self._process.pid

    def primary(self, frame: bytes) -> None:
        """The PVM sends."""
        self._send("primary", frame)

    def secondary(self, frame: bytes) -> None:
        """The SVM sends."""
        self._send("secondary", frame)

    def checkpoint(self) -> None:
        """As if one was taken: QEMU lets all of the primary's go, and forgets the secondary's."""
        self._send("notify", b"COLO_CHECKPOINT")

    def _send(self, name: str, data: bytes) -> None:
        self._ends[name].sendall(struct.pack("!I", len(data)) + data)

    def released(self) -> list[bytes]:
        """What left since the last call.

        Marks are sent behind the frames. The I/O thread looks at each socket once a turn: behind
        the second mark it has looked at all of them.
        """
        out: list[bytes] = []
        for _ in range(3):
            mark = _MARK + os.urandom(46)
            self.primary(mark)
            while (frame := self._next("out")) != mark:
                out.append(frame)
        return out

    def until_checkpoint(self, limit_s: float) -> None:
        """Until it asks for one; TimeoutError if that takes longer."""
        end = self._ends["notify"]
        end.settimeout(limit_s)
        try:
            while b"DO_CHECKPOINT" not in self._buffers["notify"]:
                self._buffers["notify"] += end.recv(65536)
        finally:
            end.settimeout(_START_S)
        self._buffers["notify"] = b""

    def checkpoints_wanted(self) -> int:
        """How often it asked for one since the last call; `released` first."""
        end = self._ends["notify"]
        end.setblocking(False)
        try:
            while data := end.recv(65536):
                self._buffers["notify"] += data
        except BlockingIOError:
            pass
        finally:
            end.settimeout(_START_S)
        count = self._buffers["notify"].count(b"DO_CHECKPOINT")
        self._buffers["notify"] = b""
        return count

    def _next(self, name: str) -> bytes:
        while True:
            buffer = self._buffers[name]
            if len(buffer) >= 4:
                (size,) = struct.unpack_from("!I", buffer)
                if len(buffer) >= 4 + size:
                    self._buffers[name] = buffer[4 + size :]
                    return buffer[4 : 4 + size]
            self._buffers[name] += self._ends[name].recv(1 << 20)
