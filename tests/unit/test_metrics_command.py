# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf metrics` as a process: where it listens, what it serves, how it ends, its unit."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession

from colo_ebpf.cli.metrics import DEFAULT_LISTEN, listen_of
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.errors import ConfigError, ControlError
from colo_ebpf.metrics.asking import load_all
from colo_ebpf.metrics.server import Listen
from tests import statuses
from tests.capabilities import ROOT, require


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (DEFAULT_LISTEN, Listen("127.0.0.1", 9949)),
        ("0.0.0.0:80", Listen("0.0.0.0", 80)),
        ("[::1]:0", Listen("::1", 0)),
        ("host:1", Listen("host", 1)),
    ],
)
def test_where_to_listen(text: str, wanted: Listen) -> None:
    assert listen_of(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "9949", ":9949", "127.0.0.1", "a:b", "a:70000", "a:-1", "[::1:5", "u@a:5", "a:5/x"]
)
def test_what_is_no_place_to_listen(text: str) -> None:
    with pytest.raises(ControlError, match=r"--listen .*: expected ADDR:PORT, such as 127") as e:
        listen_of(text)
    assert "\n" not in str(e.value)


def _write(directory: Path, vm: str, name: str = "") -> Path:
    file = directory / f"{name or vm}.toml"
    text = EXAMPLE.replace('name = "web"', f'name = "{vm}"')
    text = text.replace("/run/colo-ebpf/web", f"{directory}/{vm}")
    file.write_text(text.replace("/mnt/arbiter/web", f"{directory}/arbiter"))
    return file


def test_files_and_directories_of_vms(tmp_path: Path) -> None:
    for vm in ("db", "web"):
        _write(tmp_path, vm)
    (tmp_path / "notes.txt").write_text("not a configuration")
    assert [c.vm.name for c in load_all([tmp_path])] == ["db", "web"]
    assert [c.vm.name for c in load_all([tmp_path / "web.toml"])] == ["web"]
    _write(tmp_path, "web", "again")
    with pytest.raises(ConfigError, match=r"web.toml: vm.name 'web' is that of .*again.toml too"):
        load_all([tmp_path])


def test_bad_places_of_vms(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file in it ends in \.toml"):
        load_all([tmp_path])
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_all([tmp_path / "none.toml"])
    (tmp_path / "bad.toml").write_text("[vm")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load_all([tmp_path])


@contextmanager
def _run(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "colo_ebpf.cli.main", "metrics", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def _on(path: Path, do: Callable[[], Awaitable[None]]) -> None:
    async with statuses.daemon(path, statuses.said(statuses.of_pair("a"))):
        await do()


async def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    file = _write(tmp_path, "web")
    (tmp_path / "web").mkdir()

    async def look() -> None:
        with _run(str(file), "--listen", "127.0.0.1:0") as process:
            assert process.stderr
            line = await asyncio.to_thread(process.stderr.readline)
            match = re.fullmatch(
                r"(http://127\.0\.0\.1:\d+)/metrics has the metrics of web\n", line
            )
            assert match, line
            async with ClientSession() as session:
                async with session.get(f"{match[1]}/serving/web") as response:
                    assert response.status == 200
                async with session.get(f"{match[1]}/metrics") as response:
                    (up,) = re.findall(r"^colo_ebpf_daemon_up{.*", await response.text(), re.M)
            assert up.endswith("} 1.0"), up
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0

    await _on(tmp_path / "web" / "ctl.sock", look)


def test_a_place_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    file = _write(tmp_path, "web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with _run(str(file), "--listen", place) as process:
            _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.startswith("colo-ebpf: cannot listen on 127.0.0.1 port ")
    assert "choose another place with --listen" in error
    assert error.count("\n") == 1


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from colo_ebpf.cli.main import main\n"
        f"sys.exit(main(['metrics', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "prometheus-client is not installed" in done.stderr) == (5, True)
    assert done.stderr.count("\n") == 1
    assert _service()["RestartPreventExitStatus"] == str(done.returncode)


def test_the_daemon_and_the_other_verbs_do_not_import_it() -> None:
    code = (
        "import sys; from colo_ebpf.cli.parser import parser; parser()\n"
        "import colo_ebpf.control.startup\n"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_bytes_that_are_no_request_do_not_end_it(tmp_path: Path) -> None:
    file = _write(tmp_path, "web")
    with _run(str(file), "--listen", "127.0.0.1:0") as process:
        assert process.stderr
        match = re.search(r":(\d+)/metrics", process.stderr.readline())
        assert match
        port = int(match[1])
        for junk in (b"\x16\x03\x01\x00", b"GET /" + b"a" * 100_000 + b"\r\n\r\n", b"\0" * 4096):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(junk)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        assert "web: the arbiter: " in process.stderr.readline()  # asked by itself, in its time
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")


UNIT = ROOT / "packaging" / "colo-ebpf-metrics.service"


def _service() -> dict[str, str]:
    lines = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


def test_the_unit_needs_no_capability(tmp_path: Path) -> None:
    require("root")
    service = _service()
    program, *words = service["ExecStart"].split()
    assert (program, words) == ("/usr/bin/colo-ebpf", ["metrics"])
    assert (service["CapabilityBoundingSet"], service["NoNewPrivileges"]) == ("", "yes")
    _write(tmp_path, "web")
    (tmp_path / "web").mkdir(mode=0o700)
    notify = tmp_path / "notify"
    confined = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]
    command = [*confined, sys.executable, "-m", "colo_ebpf.cli.main", "metrics", str(tmp_path)]
    environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon,
    ):
        systemd.bind(str(notify))
        systemd.settimeout(60)
        path = tmp_path / "web" / "ctl.sock"
        daemon.bind(str(path))
        path.chmod(0o600)
        daemon.listen()
        daemon.settimeout(60)
        words = [*command, "--listen", "127.0.0.1:0"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr
            place = process.stderr.readline()
            assert systemd.recv(100) == b"READY=1"
            address = re.match(r"http://(\S+:\d+)/", place)
            assert address
            connection = http.client.HTTPConnection(address[1], timeout=60)
            connection.request("GET", "/protected/web")
            asker, _ = daemon.accept()
            with asker:
                assert asker.recv(100) == b'{"command": "status"}\n'
                asker.sendall(statuses.said(statuses.of_pair("b")))
                assert connection.getresponse().status == 200
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0
