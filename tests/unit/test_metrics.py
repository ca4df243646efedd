# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf metrics`: what it makes of what daemons say, and of those that say nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_parsed
from prometheus_client.parser import text_string_to_metric_families as parsed

from colo_ebpf.errors import ArbiterError, ControlError
from colo_ebpf.metrics.answers import Answer, Target, serves
from colo_ebpf.metrics.asking import Watched, ask_status
from colo_ebpf.metrics.families import families, sample_names
from colo_ebpf.metrics.server import Server, _Collected
from tests import statuses
from tests.capabilities import ROOT
from tests.promtool import promtool

SHORT_S = 0.05
ME = ("web", "a")


def _answer(status: dict[str, Any] | None) -> Answer:
    return Answer(Target(*ME, "/run/ctl.sock"), status, arbiter_error="")


def _samples(*found: Answer) -> dict[tuple[str, str], float]:
    """By name and the labels that are not of every metric."""
    samples = {}
    for family in families(found):
        for one in family.samples:
            own = [f"{k}={v}" for k, v in one.labels.items() if k not in ("vm", "host")]
            samples[one.name, ",".join(own)] = one.value
    return samples


# --- from a status to metrics ---------------------------------------------------------------


def test_a_primary_of_a_pair() -> None:
    status = statuses.of_pair("a")
    found = _samples(_answer(status))
    for name in ("serving", "protected", "daemon_up", "arbiter_up", "vm_alive"):
        assert found[f"colo_ebpf_{name}", ""] == 1, name
    for name in ("paused", "harmed", "guest_panicked"):
        assert found[f"colo_ebpf_{name}", ""] == 0, name
    states = {own: value for (name, own), value in found.items() if name == "colo_ebpf_state"}
    assert [own for own, value in states.items() if value] == ["colo_ebpf_state=primary"]
    assert len(states) == 13
    points = status["checkpoints"]
    assert found["colo_ebpf_checkpoints_total", "cause=operator"] == points["by_cause"]["operator"]
    assert found["colo_ebpf_checkpoints_total", "cause=mismatch"] == 0, "a rate needs the 0"
    count = found["colo_ebpf_checkpoint_pause_seconds_count", ""]
    assert count == found["colo_ebpf_checkpoint_pause_seconds_bucket", "le=+Inf"]
    assert count == points["total"]
    assert found["colo_ebpf_peer_timeout_seconds", ""] == 0.25
    counters = "program=compare,verdict=hold,reason=new"
    assert found["colo_ebpf_packet_bytes_total", counters] == 4096


def test_a_secondary_does_not_serve_but_is_protected() -> None:
    found = _samples(_answer(statuses.of_pair("b")))
    assert (found["colo_ebpf_serving", ""], found["colo_ebpf_protected", ""]) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "yes"),
    [
        ({"state": "solo", "mode": "solo"}, True),
        ({"state": "pairing", "mode": "solo"}, True),
        ({"state": "pairing", "mode": "pairing"}, False),
        ({"state": "lost", "mode": "primary"}, False),
        ({"state": "claimed", "mode": "primary"}, False),
        ({"state": "solo", "mode": "withhold"}, False),
        ({"vm_process": None}, False),
        ({"guest": {"powered_off": True, "panicked": False, "reboots": 0}}, False),
    ],
)
def test_who_serves(changes: dict[str, Any], yes: bool) -> None:
    assert serves(statuses.of_pair("a", **changes)) is yes


def test_a_daemon_that_does_not_answer_is_a_metric_and_claims_nothing() -> None:
    found = _samples(_answer(None))
    assert found["colo_ebpf_daemon_up", ""] == 0
    assert found["colo_ebpf_arbiter_up", ""] == 1, "this process asks it by itself"
    assert not [name for name, _ in found if name.startswith("colo_ebpf_serving")]


def _without(status: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = status
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return status


@pytest.mark.parametrize(
    "path",
    [(key,) for key in statuses.of_pair("a")]
    + [("checkpoints", key) for key in statuses.of_pair("a")["checkpoints"]]
    + [("peer", key) for key in statuses.of_pair("a")["peer"]],
)
@pytest.mark.parametrize("instead", ["nothing", None, "\ud800text", [1], -1])
def test_what_another_version_does_not_say_is_left_out_alone(
    path: tuple[str, ...], instead: object
) -> None:
    status = _without(statuses.of_pair("a"), *path)
    if instead != "nothing":
        inner = status if len(path) == 1 else status[path[0]]
        inner[path[-1]] = instead
    text = _text(_answer(status), _answer(None))
    assert list(parsed(text))
    if path != ("paused",):
        assert 'colo_ebpf_paused{host="a",vm="web"} 0.0' in text.replace(
            '{vm="web",host="a"}', '{host="a",vm="web"}'
        )


def _registry(*found: Answer) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(found))
    return registry


def _text(*found: Answer) -> str:
    from prometheus_client import generate_latest

    return generate_latest(_registry(*found)).decode()


def test_both_formats_can_be_read_and_name_the_same() -> None:
    pair = [_answer(statuses.of_pair("a")), Answer(Target("db", "a", "/s"), None)]
    names = {one.name for family in parsed(_text(*pair)) for one in family.samples}
    again = open_metrics(_registry(*pair)).decode()
    assert {one.name for family in open_parsed(again) for one in family.samples} == names
    assert names <= sample_names()


def test_prometheus_own_linter_finds_nothing() -> None:
    primary, secondary = statuses.of_pair("a"), statuses.of_pair("b")
    secondary["overlays"] = [{"disk": 0, "used_bytes": 1, "limit_bytes": 2, "free_bytes": 3}]
    primary["progress"] = {"what": "disk 0", "done": 1, "total": 2}
    said = _text(_answer(primary), Answer(Target("web", "b", "/s"), secondary))
    done = promtool("check", "metrics", text=said)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def _table() -> str:
    """Of the docs: every metric, its own labels and what it says."""
    lines = ["| metric | kind | own labels | |", "|---|---|---|---|"]
    for family in families(()):
        name = family.name + ("_total" if family.type == "counter" else "")
        own = [label for label in family._labelnames if label not in ("vm", "host")]
        labels = ", ".join(f"`{label}`" for label in own)
        kind = family.type.replace("stateset", "state set")
        lines.append(f"| `{name}` | {kind} | {labels} | {family.documentation.rstrip('.')} |")
    return "\n".join(lines)


def test_every_metric_is_described_in_the_docs() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    begin, end = "<!-- metrics: begin -->\n", "\n<!-- metrics: end -->"
    assert page.partition(begin)[2].partition(end)[0] == _table()


# --- asking ---------------------------------------------------------------------------------


async def _never() -> None:
    """An arbiter that answers."""


async def _hangs() -> None:
    raise ArbiterError("it did not answer")


def _watched(path: Path, timeout_s: float = 5.0, read: Callable[[], Any] = _never) -> Watched:
    return Watched(Target(*ME, str(path)), read, timeout_s)


async def test_a_daemon_is_asked_once_however_many_look(tmp_path: Path) -> None:
    path, status = tmp_path / "ctl.sock", statuses.of_pair("a")
    async with statuses.daemon(path, statuses.said(status)) as asked:
        one = _watched(path)
        found = await asyncio.gather(*(one.answer() for _ in range(50)))
        assert {id(answer.status) for answer in found} == {id(found[0].status)}
        assert (len(asked), found[0].status) == (1, status)
        await one.answer()
        assert len(asked) == 2, "the next look is a new one"


async def test_who_gives_up_looking_does_not_take_the_answer_from_others(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    async with statuses.daemon(path, statuses.said(statuses.of_pair("a"))):
        one = _watched(path)
        first, second = (asyncio.create_task(one.answer()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).status is not None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "does not answer within 0.05 s"),
        (b"half of", "does not answer within"),
        (b"GET / HTTP/1.0\n", "is no status"),
        (b"[]\n", "is no status"),
        (b"7\n", "is no status"),
        (b'{"ok": 7}\n', "is no status"),
        (b'{"ok": null}\n', "is no status"),
        (b"\xff\xfe\n", "is no status"),
        (b"[" * 100_000 + b"\n", "is no status"),
        (b'{"error": "not now"}\n', "says: not now"),
        (b"x" * ((4 << 20) + 100), "answers without an end"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_what_is_no_status_is_said_in_a_sentence(
    tmp_path: Path, line: bytes, says: str
) -> None:
    path = tmp_path / "ctl.sock"
    timeout_s = SHORT_S if says.startswith("does not") else 30.0
    async with statuses.daemon(path, line):
        answer = await _watched(path, timeout_s).answer()
    assert answer.status is None
    assert says in answer.error
    assert "\n" not in answer.error


async def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no daemon answers on .*: is it running\?"):
        await ask_status(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match="no daemon answers on"):
        await ask_status(str(tmp_path / "file"))
    with pytest.raises(ControlError, match="too long"):
        await ask_status(str(tmp_path / ("long" * 50)))


async def test_one_that_hangs_is_never_waited_for_however_often_it_is_asked(
    tmp_path: Path,
) -> None:
    """Nobody accepts: after some connections the kernel takes no more."""
    path = tmp_path / "ctl.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        one = _watched(path, SHORT_S)
        for _ in range(6):
            answer = await one.answer()
            assert answer.status is None
            assert answer.error


async def test_an_arbiter_that_fails_is_told_once_and_is_a_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = _watched(tmp_path / "none", read=_hangs)
    assert "colo_ebpf_arbiter_up{" not in _text(await one.answer()), "not asked yet"
    for _ in range(3):
        await one.look_at_arbiter()
    assert [r.message for r in caplog.records] == ["web: the arbiter: it did not answer"]
    assert _samples(await one.answer())["colo_ebpf_arbiter_up", ""] == 0


# --- the pages --------------------------------------------------------------------------------

Client = TestClient[Request, Application]


@asynccontextmanager
async def _server(*vms: Watched) -> AsyncIterator[Client]:
    async with TestClient(TestServer(Server(vms).application())) as client:
        yield client


async def _got(client: Client, path: str) -> tuple[int, str]:
    async with client.get(path) as response:
        return response.status, await response.text()


async def test_the_pages_of_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    async with (
        statuses.daemon(path, statuses.said(statuses.of_pair("b"))),
        _server(_watched(path)) as client,
    ):
        why = "secondary of a protected pair\n"
        assert await _got(client, "/protected/web") == (200, f"protected: {why}")
        assert await _got(client, "/serving/web") == (503, f"not serving: {why}")
        assert await _got(client, "/healthz") == (200, "ok\n")
        assert (await _got(client, "/"))[0] == 200
        code, text = await _got(client, "/metrics")
        assert (code, "colo_ebpf_daemon_up" in text) == (200, True)
        async with client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as r:
            assert r.content_type == "application/openmetrics-text"
            assert (await r.text()).endswith("# EOF\n")


async def test_a_daemon_that_hangs_makes_no_page_hang(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.sock", tmp_path / "bad.sock"
    async with (
        statuses.daemon(bad),
        statuses.daemon(good, statuses.said(statuses.of_pair("a"))),
    ):
        other = Watched(Target("db", "a", str(good)), _never, 5.0)
        async with _server(_watched(bad, SHORT_S), other) as client:
            code, text = await _got(client, "/protected/web")
            assert (code, text.startswith("not known: the daemon on")) == (503, True)
            code, text = await _got(client, "/metrics")
            up = {
                one.labels["vm"]: one.value
                for family in parsed(text)
                for one in family.samples
                if one.name == "colo_ebpf_daemon_up"
            }
            assert (code, up) == (200, {"web": 0, "db": 1})
            assert (await _got(client, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/serving/none", 404),
        ("/serving/%2e%2e%2fweb", 404),
        ("/serving/%ff%00", 404),
        ("/serving/", 404),
        ("/nothing", 404),
    ],
)
async def test_a_vm_that_is_not_here(tmp_path: Path, path: str, code: int) -> None:
    async with _server(_watched(tmp_path / "none", SHORT_S)) as client:
        found, text = await _got(client, path)
        assert (found, "Traceback" in text) == (code, False)
        if path == "/serving/none":
            assert text == "no VM of this name here; known: web\n"


async def test_nothing_can_be_written(tmp_path: Path) -> None:
    async with _server(_watched(tmp_path / "none", SHORT_S)) as client:
        for path in ("/metrics", "/serving/web", "/healthz"):
            async with client.post(path, data=b"x") as response:
                assert response.status == 405


async def test_a_sentence_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    status = statuses.of_pair("a", sentence="a file \udcff", disk="failed: \udcff")
    async with (
        statuses.daemon(path, statuses.said(status)),
        _server(_watched(path)) as client,
    ):
        assert await _got(client, "/serving/web") == (200, "serving: a file ?\n")
        assert (await _got(client, "/metrics"))[0] == 200
