# SPDX-License-Identifier: GPL-2.0-only
"""What `colo-ebpf metrics` serves over HTTP. It reads, and changes nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from colo_ebpf.control.host.systemd import Notifier
from colo_ebpf.errors import ControlError
from colo_ebpf.metrics import answers as asked
from colo_ebpf.metrics.answers import Answer, Status, legible
from colo_ebpf.metrics.asking import Watched
from colo_ebpf.metrics.families import families

_LEAVING_S = 1.0  # for who is being answered when the process ends
_PLACES = "/metrics\n/protected/NAME\n/serving/NAME\n/healthz\n"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to be asked; port 0: any that is free."""

    address: str
    port: int


class _Collected(Collector):
    """A registry's collector of families that are there already."""

    def __init__(self, found: Sequence[Answer]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from families(self._found)


class Server:
    """Of all VMs of this host."""

    def __init__(self, vms: Sequence[Watched]) -> None:
        self._vms = {one.target.vm: one for one in vms}

    def application(self) -> web.Application:
        """Its pages."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._places),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/protected/{name}", self._page("protected", asked.protected)),
                web.get("/serving/{name}", self._page("serving", asked.serves)),
            ]
        )
        return app

    async def _places(self, _request: web.Request) -> web.Response:
        return web.Response(text=_PLACES)

    async def _healthz(self, _request: web.Request) -> web.Response:
        """This process works; what the daemons do is not asked."""
        return web.Response(text="ok\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        found = await asyncio.gather(*(one.answer() for one in self._vms.values()))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(found))
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(registry), headers={"Content-Type": kind})
        response.enable_compression()
        return response

    def _page(
        self, what: str, holds: Callable[[Status], bool]
    ) -> Callable[[web.Request], asyncio.Future[web.Response]]:
        async def page(request: web.Request) -> web.Response:
            name = request.match_info["name"]
            one = self._vms.get(name)
            if one is None:
                known = ", ".join(self._vms)
                return web.Response(status=404, text=f"no VM of this name here; known: {known}\n")
            return _said(what, await one.answer(), holds)

        return page  # type: ignore[return-value]


def _said(what: str, answer: Answer, holds: Callable[[Status], bool]) -> web.Response:
    """200: yes; 503: no, or nobody can say."""
    if answer.status is None:
        return web.Response(status=503, text=f"not known: {answer.error}\n")
    try:
        yes, why = holds(answer.status), legible(answer.status["sentence"])
    except (KeyError, TypeError):
        return web.Response(status=503, text="not known: the daemon is of another version\n")
    return web.Response(
        status=200 if yes else 503, text=f"{what if yes else f'not {what}'}: {why}\n"
    )


class _OurFaults(logging.Filter):
    """Who sends what is no request is answered so, and is none of our faults."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def serve(
    vms: Sequence[Watched], listen: Listen, began: Callable[[str], None] = lambda url: None
) -> None:
    """Until SIGTERM or SIGINT. ControlError if it cannot listen there."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    logging.getLogger("aiohttp.server").addFilter(_OurFaults())
    application = Server(vms).application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_LEAVING_S)
    await runner.setup()
    try:
        began(await _begin(runner, listen))
        Notifier().say(READY=1)
        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(one.keep_looking_at_arbiter()) for one in vms]
            await stopping.wait()
            for look in looks:
                look.cancel()
    finally:
        await runner.cleanup()


async def _begin(runner: web.AppRunner, listen: Listen) -> str:
    """Listen; the place of the metrics."""
    try:
        await web.TCPSite(runner, listen.address, listen.port).start()
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or e
        raise ControlError(
            f"cannot listen on {listen.address} port {listen.port}: {why}; choose another place "
            "with --listen"
        ) from e
    address, port = runner.addresses[0][:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"
