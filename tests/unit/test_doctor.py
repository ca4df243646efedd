# SPDX-License-Identifier: GPL-2.0-only
"""What `doctor` makes of the tables that concern the whole host."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from colo_ebpf.cli.doctor import _configured
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import Config, FenceTable, WatchdogTable
from colo_ebpf.errors import ConfigError, WatchdogError

BASE = parse_config(EXAMPLE, Path("example"))


def _with(**tables: object) -> Config:
    return msgspec.structs.replace(BASE, **tables)


def _fence(program: Path) -> str:
    table = FenceTable(command=[str(program), "--now"], when="before-solo")
    return dict(_configured(_with(fence=table)))["fence"]()


def _watchdog(device: Path) -> str:
    table = WatchdogTable(device=str(device), timeout_s=30)
    return dict(_configured(_with(watchdog=table)))["watchdog"]()


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    names = [name for name, _ in _configured(BASE)]
    assert "arbiter" in names
    assert not {"fence", "watchdog"} & set(names)


def test_the_fence_command_is_looked_at_and_never_run(tmp_path: Path) -> None:
    program = tmp_path / "fence"
    with pytest.raises(ConfigError, match="cannot be run: is it there and executable"):
        _fence(program)
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    with pytest.raises(ConfigError, match="cannot be run"):
        _fence(program)
    program.chmod(0o722)
    with pytest.raises(ConfigError, match="can be written by others"):
        _fence(program)
    program.chmod(0o700)
    assert _fence(program).startswith(f"before-solo: {program} can be run")
    with pytest.raises(ConfigError, match="cannot be run"):
        _fence(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_the_watchdog_device_is_looked_at_and_never_opened(tmp_path: Path) -> None:
    device = tmp_path / "watchdog"
    with pytest.raises(WatchdogError, match="No such file"):
        _watchdog(device)
    os.mkfifo(device)  # to open it for writing would fail: nobody reads
    assert _watchdog(device) == (f"{device}: nowayout is not set; the daemon asks it for 30 s")
