# SPDX-License-Identifier: GPL-2.0-only
"""The arbiter that a configuration names, for the daemon and for the operator's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from colo_ebpf.config.schema import Config
from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.interfaces import Arbiter


class OperatedArbiter(Arbiter, Protocol):
    """What an operator asks of an arbiter beside what the daemon does."""

    async def init(self, host: str) -> Record:
        """Write generation 1, cold at `host`; raises ArbiterError if there is a record."""

    async def examine(self) -> Record:
        """Read in every way there is; raises ArbiterError naming those that fail."""


def arbiter_of(config: Config, keeps_room: bool = False) -> OperatedArbiter:
    """The one of `[arbiter]`. `keeps_room`: for what this host will have to write there."""
    table, timeout_ms = config.arbiter, config.timing.arbiter_timeout_ms
    if table.kind == "file":
        return FileArbiter(Path(table.path), timeout_ms, config.host.name if keeps_room else "")
    # aiohttp takes a quarter of a daemon's start: for those who need it.
    from colo_ebpf.control.arbiter.etcd import EtcdArbiter
    from colo_ebpf.control.arbiter.etcd_client import Etcd, Tls

    tls = Tls(table.ca_file, table.cert_file, table.key_file) if table.ca_file else None
    key = f"{table.prefix}/{config.vm.name}/record"
    return EtcdArbiter(Etcd(table.endpoints, tls, timeout_ms), key)
