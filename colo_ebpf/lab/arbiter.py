# SPDX-License-Identifier: GPL-2.0-only
"""Where a lab keeps its record: a directory, or an etcd member in a namespace of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import subprocess
import time

from colo_ebpf.config.reading import load_config
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import LabError
from colo_ebpf.lab import processes, topology
from colo_ebpf.lab.topology import ARBITER_ADDRESS, ARBITER_PORT, Place, arbiter_namespace

_READY_S, _POLL_S = 30.0, 0.05
_PEERS = "http://127.0.0.1:2380"


def start(lab: str) -> None:
    """Start etcd, unless it runs; returns when it answers."""
    namespace = arbiter_namespace(lab)
    if not processes.in_namespace(namespace):
        _start(lab, namespace)
    deadline = time.monotonic() + _READY_S
    while not namespaces.run_in(namespace, lambda: healthy(ARBITER_ADDRESS, ARBITER_PORT)):
        if time.monotonic() > deadline:
            raise LabError(f"etcd is not healthy; see {topology.arbiter_directory(lab)}/log")
        time.sleep(_POLL_S)


def _start(lab: str, namespace: str) -> None:
    if not shutil.which("etcd"):
        raise LabError("etcd is not installed: install the package etcd-server")
    directory, url = topology.arbiter_directory(lab), topology.arbiter_url()
    directory.mkdir(exist_ok=True)
    options = {
        "name": lab,
        "data-dir": str(directory / "data"),
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": _PEERS,
        "initial-advertise-peer-urls": _PEERS,
        "initial-cluster": f"{lab}={_PEERS}",
    }
    with (directory / "log").open("ab") as log:
        subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{namespace}", "etcd"),
                *(f"--{key}={value}" for key, value in options.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def healthy(address: str, port: int) -> bool:
    """The member says that its cluster has a leader and commits."""
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read())["health"] == "true")
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def init(place: Place) -> None:
    """The first record, as an operator on that host writes it."""
    config = load_config(place.config)
    namespaces.run_in(
        place.namespace, lambda: asyncio.run(arbiter_of(config).init(config.host.name))
    )
