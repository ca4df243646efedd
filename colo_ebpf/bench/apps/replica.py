# SPDX-License-Identifier: GPL-2.0-only
"""A second disk for a plain VM: an export of the other host's QEMU, as a pair has it.

Without COLO and without overlays: what is left is that a write or flush waits for both disks, and
that the second one's QEMU, which has a guest of its own, takes part in it.
"""

from __future__ import annotations

import asyncio
import shutil
import time

from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import Place

_NODE, _PORT = "replica", 9999
_START_S, _POLL_S, _QMP_MS = 20.0, 0.02, 5_000


class Replica:
    """Of `image`, on the host `place`."""

    def __init__(self, place: Place, image: str) -> None:
        self.place = place
        self._image = image
        self._file = place.directory / "replica.raw"
        self._sockets = [place.run_dir / name for name in ("qmp", "qmp-oob")]

    def make(self) -> None:
        """The image's copy; the place's directories are there."""
        shutil.copyfile(self._image, self._file)

    def drive(self) -> list[str]:
        """Arguments of the QEMU that lends it."""
        image = f"driver=raw,file.driver=file,file.filename={self._file}"
        sockets = [f"unix:{path},server=on,wait=off" for path in self._sockets]
        qmp = [word for socket in sockets for word in ("-qmp", socket)]
        return ["-blockdev", f"node-name={_NODE},{image}", *qmp]

    def child(self, number: int) -> str:
        """Options of this child of a quorum."""
        export = f"driver=nbd,export={_NODE},server.type=inet"
        server = f"server.host={self.place.link_address},server.port={_PORT}"
        return ",".join(f"children.{number}.{word}" for word in f"{export},{server}".split(","))

    async def lend(self) -> None:
        """The QEMU has been started: it exports the image. Raises BenchError, QmpError."""
        deadline = time.monotonic() + _START_S
        while not all(path.exists() for path in self._sockets):
            if time.monotonic() > deadline:
                raise BenchError(f"QEMU on {self.place.host} opens no monitor")
            await asyncio.sleep(_POLL_S)
        monitors = Monitors(f"twin {self.place.host}", _QMP_MS, lambda event: None)
        await monitors.connect(*self._sockets)
        try:
            address = {"host": self.place.link_address, "port": str(_PORT)}
            await monitors.run("nbd-server-start", addr={"type": "inet", "data": address})
            await monitors.run("nbd-server-add", device=_NODE, writable=True)
        finally:
            await monitors.close()
