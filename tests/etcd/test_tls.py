# SPDX-License-Identifier: GPL-2.0-only
"""TLS with client certificates: who is let in, and what is said to the others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from colo_ebpf.control.arbiter.etcd_client import Tls
from colo_ebpf.control.decision import record
from colo_ebpf.errors import ArbiterError
from tests.capabilities import require
from tests.etcd.certificates import Certificates
from tests.etcd.cluster import Cluster, cluster

OVER, TO_COME = (-2, -1), (1, 2)  # days from now, far enough for a clock that is off by some hours


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    require("etcd")
    return Certificates(tmp_path_factory.mktemp("ours") / "tls")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of a CA that the cluster does not know."""
    return Certificates(tmp_path_factory.mktemp("others") / "tls")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, ours: Certificates) -> Iterator[Cluster]:
    """A member that wants a client certificate."""
    with cluster(tmp_path_factory.mktemp("secured"), 1, ours) as one:
        yield one


async def test_client_and_server_know_each_other(secured: Cluster, key: str) -> None:
    first = await secured.arbiter(key).init("a")
    won = await secured.arbiter(key).swap(first, record.start(first, "a/0000000000000001"))
    assert await secured.arbiter(key).examine() == won


async def test_a_server_of_another_ca_is_refused(
    secured: Cluster, others: Certificates, ours: Certificates, key: str
) -> None:
    tls = Tls(others.path("ca.pem"), ours.path("client.pem"), ours.path("client.key"))
    with pytest.raises(ArbiterError, match=r"its certificate is refused: .*arbiter.ca-file"):
        await secured.arbiter(key, tls=tls).read()


async def test_a_server_of_another_name_is_refused(secured: Cluster, key: str) -> None:
    endpoint = secured.endpoints[0].replace("127.0.0.1", "localhost")
    with pytest.raises(ArbiterError, match="certificate is refused: Hostname mismatch"):
        await secured.arbiter(key, endpoints=[endpoint]).read()


@pytest.mark.parametrize("shown", ["none", "another CA's"])
async def test_a_client_without_the_right_certificate_is_refused(
    secured: Cluster, others: Certificates, ours: Certificates, key: str, shown: str
) -> None:
    names = ("", "") if shown == "none" else (others.path("client.pem"), others.path("client.key"))
    with pytest.raises(ArbiterError, match=r"refuses this client's certificate: .*cert-file"):
        await secured.arbiter(key, tls=Tls(ours.path("ca.pem"), *names)).read()


@pytest.mark.parametrize("days", [OVER, TO_COME])
async def test_a_client_whose_certificate_does_not_hold_today_is_refused(
    secured: Cluster, ours: Certificates, tmp_path: Path, key: str, days: tuple[int, int]
) -> None:
    made = Certificates(tmp_path / "tls", like=ours)
    made.date("client", *days)
    with pytest.raises(ArbiterError, match=r"refuses this client's certificate: .*cert-file"):
        await secured.arbiter(key, tls=made.of_client()).read()


@pytest.mark.parametrize("days", [OVER, TO_COME])
async def test_a_server_whose_certificate_does_not_hold_today_is_refused(
    secured: Cluster, ours: Certificates, tmp_path: Path, key: str, days: tuple[int, int]
) -> None:
    says = "certificate has expired" if days == OVER else "certificate is not yet valid"
    made = Certificates(tmp_path / "tls", like=ours)
    made.date("server", *days)
    async with _server_that_nobody_takes(made) as endpoint:
        with pytest.raises(ArbiterError, match=rf"its certificate is refused: {says} \(arbiter"):
            await secured.arbiter(key, endpoints=[endpoint]).read()


@contextlib.asynccontextmanager
async def _server_that_nobody_takes(of: Certificates) -> AsyncIterator[str]:
    """Where it is."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(of.path("server.pem"), of.path("server.key"))

    def nobody_comes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("it was taken for the arbiter")

    server = await asyncio.start_server(nobody_comes, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_key_of_another_certificate_is_named_with_it(
    secured: Cluster, ours: Certificates, others: Certificates, key: str
) -> None:
    tls = Tls(ours.path("ca.pem"), ours.path("client.pem"), others.path("client.key"))
    files = rf"{ours.path('client.pem')}, {others.path('client.key')}"
    said = rf"arbiter\.cert-file, key-file: {files}: they do not belong together"
    with pytest.raises(ArbiterError, match=said):
        await secured.arbiter(key, tls=tls).read()


async def test_plain_http_at_a_tls_port_is_an_error(secured: Cluster, key: str) -> None:
    endpoint = secured.endpoints[0].replace("https", "http")
    with pytest.raises(ArbiterError, match="did not answer"):
        await secured.arbiter(key, 300, [endpoint]).read()


@pytest.mark.parametrize("file", ["ca.pem", "client.pem", "client.key"])
@pytest.mark.parametrize("broken", ["missing", "garbage"])
async def test_a_broken_file_is_named(
    secured: Cluster, tmp_path: Path, key: str, file: str, broken: str
) -> None:
    made = Certificates(tmp_path / "tls")
    if broken == "missing":
        Path(made.path(file)).unlink()
    else:
        Path(made.path(file)).write_text("no PEM")
    with pytest.raises(ArbiterError, match=f"arbiter.*{file}"):
        await secured.arbiter(key, tls=made.of_client()).read()


async def test_a_key_with_a_passphrase_is_refused_without_asking(
    secured: Cluster, tmp_path: Path, key: str
) -> None:
    made = Certificates(tmp_path / "tls")
    made.encrypt("client.key")
    with pytest.raises(ArbiterError, match=r"arbiter.cert-file, key-file: .*client.key"):
        await secured.arbiter(key, tls=made.of_client()).read()


async def test_renewed_certificates_are_used_at_once(
    secured: Cluster, ours: Certificates, others: Certificates, tmp_path: Path, key: str
) -> None:
    paths = {name: tmp_path / name for name in ("client.pem", "client.key")}
    tls = Tls(ours.path("ca.pem"), *(str(path) for path in paths.values()))
    arbiter = secured.arbiter(key, tls=tls)
    for issuer in (others, ours):
        for name, path in paths.items():
            path.write_bytes(Path(issuer.path(name)).read_bytes())
        if issuer is others:
            with pytest.raises(ArbiterError, match="refuses this client's certificate"):
                await arbiter.init("a")
    assert (await arbiter.init("a")).generation == 1
