# SPDX-License-Identifier: GPL-2.0-only
"""The verb `colo-ebpf metrics`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from colo_ebpf.cli import vms
from colo_ebpf.errors import ControlError, NotInstalledError

if TYPE_CHECKING:
    from colo_ebpf.metrics.server import Listen

DEFAULT_LISTEN = "127.0.0.1:9949"


def add_verb(verbs: Any) -> None:
    """Its line of the command line."""
    metrics = verbs.add_parser("metrics", help="serve the metrics of this host's VMs to Prometheus")
    metrics.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FILE|DIR",
        help="configurations of the VMs, or directories of *.toml (default: all VMs of this host)",
    )
    metrics.add_argument(
        "--listen", default=DEFAULT_LISTEN, metavar="ADDR:PORT", help=f"default: {DEFAULT_LISTEN}"
    )
    metrics.set_defaults(verb=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("prometheus_client") is None:
        raise NotInstalledError(
            "prometheus-client is not installed: pip install 'colo-ebpf[metrics]', or Debian's "
            "python3-prometheus-client"
        )
    from colo_ebpf.control.host import journal
    from colo_ebpf.metrics import asking, server

    listen = listen_of(args.listen)
    configs = asking.load_all(args.paths or _of_this_host())
    journal.begin(COLO_HOST=configs[0].host.name)
    watched = [asking.watched(config) for config in configs]
    names = ", ".join(one.target.vm for one in watched)

    def began(url: str) -> None:
        print(f"{url} has the metrics of {names}", file=sys.stderr, flush=True)

    asyncio.run(server.serve(watched, listen, began))
    return 0


def _of_this_host() -> list[Path]:
    found = vms.files(vms.DIRECTORY)
    if told := os.environ.get("COLO_EBPF_CONFIG"):
        return [Path(told)]
    if not found:
        raise ControlError(f"{vms.DIRECTORY}: no VM is configured there; name a configuration")
    return found


def listen_of(text: str) -> Listen:
    """ADDR:PORT, [ADDR]:PORT of IPv6; ControlError if it is neither."""
    from colo_ebpf.metrics.server import Listen

    try:
        parts = urlsplit(f"//{text}")
        address, port = parts.hostname, parts.port
    except ValueError:
        address = port = None
    if not address or port is None or parts.path or parts.query or "@" in text or "#" in text:
        raise ControlError(f"--listen {text}: expected ADDR:PORT, such as {DEFAULT_LISTEN}")
    return Listen(address, port)
