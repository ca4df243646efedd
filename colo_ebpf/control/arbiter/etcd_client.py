# SPDX-License-Identifier: GPL-2.0-only
"""Requests to an etcd v3 cluster: several endpoints, one deadline, TLS.

It speaks etcd's JSON gateway over aiohttp: etcd3gw blocks and would need threads, aetcd has seen
one release, and both hide whether a request that failed was sent.

Each endpoint is asked in a lane of its own. The next lane begins when the one before has failed
or has been silent for a moment; the first answer ends all. A try that ends without an answer is
repeated: a transaction that compares the revision it replaces does no harm when it comes twice,
and the second time its answer tells what became of the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec

from colo_ebpf.errors import ArbiterError, UnansweredError

_PATIENCE_S = 0.1
_TRIES = 2  # of an endpoint that is silent: the second has a new connection
_JSON = {"Content-Type": "application/json"}
# gRPC's invalid argument, permission denied, resource exhausted, unauthenticated: nothing was done.
_REFUSED = frozenset({3, 7, 8, 16})
_CLIENT_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_EXP")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_T = TypeVar("_T", bound="Reply")


class Header(msgspec.Struct, frozen=True):
    """Of every reply. etcd writes 64-bit numbers as text."""

    cluster_id: str


class KeyValue(msgspec.Struct, frozen=True):
    """The current value of a key."""

    mod_revision: str
    value: bytes = b""


class RangeReply(msgspec.Struct, frozen=True):
    """To a read."""

    header: Header
    kvs: list[KeyValue] = []


class Range(msgspec.Struct, frozen=True):
    """A read inside a transaction."""

    kvs: list[KeyValue] = []


class Response(msgspec.Struct, frozen=True):
    """To one operation of a transaction."""

    response_range: Range | None = None


class Alarm(msgspec.Struct, frozen=True):
    """Of one member: `NOSPACE`, `CORRUPT`."""

    alarm: str = ""


class AlarmReply(msgspec.Struct, frozen=True):
    """The alarms of a cluster. etcd 3.4 sends no header with it."""

    header: Header = Header("")
    alarms: list[Alarm] = []


class TxnReply(msgspec.Struct, frozen=True):
    """To a transaction; `succeeded` says which branch was taken."""

    header: Header
    succeeded: bool = False
    responses: list[Response] = []


Reply = RangeReply | TxnReply | AlarmReply


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the CA of the servers, and what this client shows (or nothing)."""

    ca_file: str
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """Read afresh each time, so that renewed certificates are used without a restart.

        Raises ArbiterError for a file that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca_file)
        except OSError as e:
            raise ArbiterError(f"arbiter.ca-file: {self.ca_file}: {_reason(e)}") from e
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_passphrase)
            except OSError as e:
                files = f"{self.cert_file}, {self.key_file}"
                raise ArbiterError(f"arbiter.cert-file, key-file: {files}: {_unusable(e)}") from e
        return context


class _TryError(Exception):
    """One try at one endpoint failed; `final`: another one would fail as well."""

    def __init__(self, reason: str, *, sent: bool, final: bool = False) -> None:
        super().__init__(reason)
        self.sent, self.final = sent, final


@dataclass(slots=True)
class _Lane(Generic[_T]):
    """What one endpoint has come to in one request."""

    endpoint: str
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = "not asked"
    sent: bool = False  # by an earlier try
    sending: bool = False  # by the try under way
    reply: _T | None = None


@dataclass(frozen=True, slots=True)
class _Request(Generic[_T]):
    path: str
    data: bytes
    kind: type[_T]


class Etcd:
    """One cluster."""

    def __init__(self, endpoints: list[str], tls: Tls | None, timeout_ms: int) -> None:
        self.endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self._tls = tls
        self.timeout_s = timeout_ms / 1000
        self._order = self.endpoints  # the one that answered last comes first
        self._cluster = ""

    def deadline(self) -> float:
        """Of an operation that begins now, on the running loop's clock."""
        return asyncio.get_running_loop().time() + self.timeout_s

    async def ask(
        self, path: str, body: dict[str, Any], kind: type[_T], deadline: float, only: str = ""
    ) -> _T:
        """The first answer of any endpoint, or of `only` this one; UnansweredError if there is
        none in time."""
        endpoints = [only] if only else self._order
        request = _Request(path, msgspec.json.encode(body), kind)
        async with self._session() as session:

            async def post(lane: _Lane[_T], timeout_s: float) -> _T:
                return await self._post(session, request, lane, timeout_s)

            race = _Race([_Lane(endpoint) for endpoint in endpoints], post, deadline)
            winner = await race.run()
        if winner is None or winner.reply is None:
            raise self._unanswered(race.lanes)
        self._order = sorted(self._order, key=lambda endpoint: endpoint != winner.endpoint)
        return winner.reply

    def _session(self) -> aiohttp.ClientSession:
        context = self._tls.context() if self._tls else None
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sending)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True, force_close=True),
            trace_configs=[trace],
        )

    async def _post(
        self,
        session: aiohttp.ClientSession,
        request: _Request[_T],
        lane: _Lane[_T],
        timeout_s: float,
    ) -> _T:
        lane.sending = False
        try:
            async with session.post(
                lane.endpoint + request.path,
                data=request.data,
                headers=_JSON,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                trace_request_ctx=lane,
            ) as response:
                status, text = response.status, await response.read()
        except TimeoutError as e:
            raise _TryError(self._silent, sent=lane.sending) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise _connection_error(e, lane.sending) from e
        if status != 200:
            raise _refusal(status, text)
        try:
            reply = msgspec.json.decode(text, type=request.kind)
        except _UNREADABLE as e:
            raise _TryError(f"not an answer of etcd v3: {e}", sent=True, final=True) from e
        if not isinstance(reply, AlarmReply):
            self._check_cluster(reply.header.cluster_id)
        return reply

    def _check_cluster(self, cluster: str) -> None:
        """Two clusters would be two arbiters, and let either host win."""
        if self._cluster and cluster != self._cluster:
            raise _TryError(
                f"it is a member of cluster {cluster}, not of {self._cluster} that answered "
                "before: all endpoints have to be members of one cluster",
                sent=True,
                final=True,
            )
        self._cluster = cluster

    @property
    def _silent(self) -> str:
        return f"no answer within {self.timeout_s:g} s"

    def _unanswered(self, lanes: list[_Lane[_T]]) -> UnansweredError:
        told = "; ".join(f"{lane.endpoint}: {lane.reason or self._silent}" for lane in lanes)
        sent = any(lane.sent or lane.sending for lane in lanes)
        return UnansweredError(f"etcd did not answer ({told})", sent=sent)


async def _note_sending(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    context.trace_request_ctx.sending = True


class _Race(Generic[_T]):
    """Lanes that run beside each other until one has a reply or the time is over."""

    def __init__(
        self,
        lanes: list[_Lane[_T]],
        post: Callable[[_Lane[_T], float], Awaitable[_T]],
        deadline: float,
    ) -> None:
        self.lanes, self._post, self._deadline = lanes, post, deadline

    async def run(self) -> _Lane[_T] | None:
        """The lane that has a reply; None if all gave up or it is too late."""
        running = {asyncio.create_task(self._lane(number)) for number in range(len(self.lanes))}
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    while running and self._winner() is None:
                        done, running = await asyncio.wait(
                            running, return_when=asyncio.FIRST_COMPLETED
                        )
                        for task in done:
                            task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return self._winner()

    def _winner(self) -> _Lane[_T] | None:
        return next((lane for lane in self.lanes if lane.reply is not None), None)

    async def _lane(self, number: int) -> None:
        """Wait for this endpoint's turn; then try until it answers or is known to be useless."""
        lane = self.lanes[number]
        if number:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S * number):
                    await self.lanes[number - 1].failed.wait()
        lane.reason = ""
        share_s = (self._deadline - asyncio.get_running_loop().time()) / _TRIES
        while True:
            try:
                lane.reply = await self._post(lane, share_s)
                return
            except _TryError as e:
                lane.reason, lane.sent, lane.sending = str(e), lane.sent or e.sent, False
                lane.failed.set()
                if e.final:
                    return
            await asyncio.sleep(_PATIENCE_S)


def _connection_error(e: Exception, sending: bool) -> _TryError:
    if isinstance(e, aiohttp.ClientConnectorCertificateError):
        why = getattr(e.certificate_error, "verify_message", "") or str(e.certificate_error)
        text = f"its certificate is refused: {why} (arbiter.ca-file)"
        return _TryError(text, sent=False, final=True)
    text = _reason(e)
    if any(word in text.upper().replace(" ", "_") for word in _CLIENT_CERTIFICATE):
        text = f"it refuses this client's certificate: {text} (arbiter.cert-file, key-file)"
        return _TryError(text, sent=False, final=True)  # a server reads nothing before it
    if isinstance(e, aiohttp.ClientConnectorError):
        return _TryError(text, sent=False, final=True)
    return _TryError(f"the connection was lost: {text}", sent=sending)


def _unusable(e: OSError) -> str:
    """Why a certificate and a key cannot be loaded."""
    if getattr(e, "reason", "") in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return "they do not belong together: name the key that the certificate was made for"
    return _reason(e)


def _no_passphrase() -> str:
    """There is nobody to be asked: a key that has one cannot be used."""
    return ""


def _reason(e: Exception) -> str:
    inner = e.os_error if isinstance(e, aiohttp.ClientConnectorError) else e
    if isinstance(inner, ConnectionError) and inner.errno:
        return os.strerror(inner.errno).lower()  # asyncio's own text repeats the address only
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _refusal(status: int, text: bytes) -> _TryError:
    """An error that etcd answered. Few of them say that nothing was done, or will be."""
    try:
        reply = msgspec.json.decode(text, type=dict[str, Any])
    except _UNREADABLE:
        what = f"not an answer of etcd v3 but HTTP status {status}; is its gRPC gateway enabled?"
        return _TryError(what, sent=True, final=True)
    said = reply.get("message") or reply.get("error") or f"HTTP status {status}"
    refused = reply.get("code") in _REFUSED
    return _TryError(str(said), sent=not refused, final=refused)
