# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf list`: ask the daemons of this host, once or again and again."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from colo_ebpf.cli import listing, vms
from colo_ebpf.errors import ConfigError

_CLEAR = "\x1b[H\x1b[J"


def rows(directory: Path) -> list[listing.Row]:
    """Ask all daemons. ConfigError if no VM is configured."""
    found = vms.files(directory)
    if not found:
        raise ConfigError(
            f"no VM is configured: neither {directory}/vms/*.toml nor {directory}/config.toml is "
            "there; `colo-ebpf config example` prints one"
        )
    return [
        listing.row(one.name, str(one.file), one.status, one.error) for one in vms.ask_all(found)
    ]


def watch(directory: Path, every_s: float, as_json: bool) -> int:
    """Again and again until interrupted; on a terminal in place, as JSON a line for each look."""
    try:
        while True:
            found = rows(directory)
            if as_json:
                text = json.dumps([one.plain() for one in found])
            elif sys.stdout.isatty():
                text = _CLEAR + listing.readable(found, shutil.get_terminal_size().columns)
            else:
                text = listing.readable(found) + "\n"
            print(text, flush=True)
            time.sleep(every_s)
    except KeyboardInterrupt:
        return 0
