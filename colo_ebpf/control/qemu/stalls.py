# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's connections to the secondary, whose packets get no answer while heartbeats do.

A firewall may drop the TCP of the disk or of the checkpoints and let all else pass. Nothing in QEMU
ends that: a write of the guest waits in one connection, a checkpoint in the other, for as long as
the kernel tries again, a quarter of an hour. The kernel knows at once: what was sent is not
acknowledged, however often it is sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colo_ebpf.errors import DatapathError
from colo_ebpf.model import Sending

_log = logging.getLogger(__name__)
_LOOK_S = 0.25
_TRIES, _TRIES_TO_CONNECT = 2, 1  # in vain: the network may lose a segment


class Stalls:
    """Which ports do not answer. Pure.

    Only tries count that were made while the link was heard: after a cut the kernel waits longer
    and longer before the next one.
    """

    def __init__(self, limit_ms: int) -> None:
        self._limit_ms = limit_ms
        self._tries: dict[tuple[int, int], int] = {}  # made while the link was not heard
        self._heard = False  # at the last look

    def look(self, sent: Sequence[Sending], heard: bool) -> tuple[int, ...]:
        """`sent`: all connections to the secondary; `heard`: its heartbeats and frames come."""
        if not heard:
            self._heard = False
            return ()
        known, self._tries = self._tries, {}
        for one in sent:
            before = known.get((one.here, one.port), 0) if self._heard else one.tries
            self._tries[one.here, one.port] = min(before, one.tries)
        self._heard = True
        return tuple(sorted({one.port for one in sent if self._stands(one)}))

    def _stands(self, one: Sending) -> bool:
        tries = one.tries - self._tries[one.here, one.port]
        if not one.connected:
            return tries >= _TRIES_TO_CONNECT
        return one.unanswered > 0 and tries >= _TRIES and one.silent_ms >= self._limit_ms


@dataclass(frozen=True, slots=True)
class Secondary:
    """Where it is. `ports`: what each is for."""

    host: str
    address: str
    ports: Mapping[int, str]


def sentence(silent: Sequence[int], to: Secondary) -> str:
    """For `status`; "" if no port is silent."""
    if not silent:
        return ""
    named = " and TCP port ".join(f"{port} ({to.ports[port]})" for port in silent)
    says = "the link carries heartbeats, but"
    return f"{says} {to.host} does not answer on TCP port {named}: a firewall?"


class StallWatch:
    """Looks a few times a second, while there is a secondary that is heard."""

    def __init__(
        self, to: Secondary, limit_ms: int, sending: Callable[[str, int], Sequence[Sending]]
    ) -> None:
        self._to, self._sending = to, sending
        self._stalls = Stalls(limit_ms)
        self._complained = False

    async def run(self, heard: Callable[[], bool], tell: Callable[[str], None]) -> None:
        """For as long as the daemon runs."""
        while True:
            sent = await asyncio.to_thread(self._sent) if heard() else []
            tell(sentence(self._stalls.look(sent, heard()), self._to))
            await asyncio.sleep(_LOOK_S)

    def _sent(self) -> list[Sending]:
        try:
            return [one for port in self._to.ports for one in self._sending(self._to.address, port)]
        except DatapathError as e:
            if not self._complained:
                _log.warning("%s: a firewall that drops TCP is noticed late", e)
            self._complained = True
            return []
