# SPDX-License-Identifier: GPL-2.0-only
"""The VMs of this host: a configuration file each, `vms/NAME.toml`, or `config.toml`."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.config.reading import load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.errors import ColoError, ConfigError

DIRECTORY = Path("/etc/colo-ebpf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ANSWER_S = 2.0


def files(directory: Path) -> list[Path]:
    """The configuration files there, in order of their names; ConfigError if it cannot be read."""
    single = directory / "config.toml"
    try:
        found = sorted((directory / "vms").iterdir())
    except FileNotFoundError:
        found = []
    except OSError as e:
        raise ConfigError(f"{directory / 'vms'}: {e.strerror}") from e
    return [*([single] if single.exists() else []), *(f for f in found if f.suffix == ".toml")]


def locate(named: Path | None, vm: str | None, directory: Path) -> Path:
    """The file that a command means: the one it names, that of the VM it names, the only one.

    Raises ConfigError if both are named, or there are several.
    """
    if named is not None:
        if vm is not None:
            raise ConfigError(f"name a VM ({vm}) or a file (--config {named}), not both")
        return named
    if vm is not None:
        return _find(vm, directory)
    if told := os.environ.get("COLO_EBPF_CONFIG"):
        return Path(told)
    found, usual = files(directory), directory / "config.toml"
    if usual in found or not found:
        return usual
    if len(found) > 1:
        raise ConfigError(f"several VMs are configured here, name one: {_names(found)}")
    return found[0]


def _find(vm: str, directory: Path) -> Path:
    if not _NAME.fullmatch(vm):
        raise ConfigError(f"{vm!r} is not the name of a VM; files are named with --config")
    found = files(directory)
    if (own := directory / "vms" / f"{vm}.toml") in found:
        return own
    for file in found:
        if name_of(file) == vm:
            return file
    known = f"those here: {_names(found)}" if found else f"there is none in {directory}"
    raise ConfigError(f"no VM {vm} is configured; {known}")


def name_of(file: Path) -> str:
    """What the file says, or else its own name."""
    try:
        return load_config(file).vm.name
    except ConfigError:
        return file.stem


def _names(found: list[Path]) -> str:
    return ", ".join(name_of(file) for file in found)


def unit_of(file: Path) -> str:
    """The systemd unit that runs the VM of this file."""
    return f"colo-ebpf@{file.stem}" if file.parent.name == "vms" else "colo-ebpf"


def socket_of(config: Config) -> Path:
    """Where its daemon is asked."""
    return control_socket.path_in(config.host.run_dir)


@dataclass(frozen=True, slots=True)
class Asked:
    """A VM, and what its daemon said (`report.status`), or why nothing could be had."""

    name: str
    file: Path
    status: dict[str, Any] | None
    error: str


def ask_all(found: list[Path]) -> list[Asked]:
    """All at once: a daemon that hangs keeps no other from being shown."""
    answers: list[Asked | None] = [None] * len(found)

    def ask(number: int) -> None:
        answers[number] = _ask(found[number])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for one in answers if one is not None]


def _ask(file: Path) -> Asked:
    name = file.stem
    try:
        config = load_config(file)
        name = config.vm.name
        return Asked(name, file, control_socket.ask(socket_of(config), "status", _ANSWER_S), "")
    except ColoError as e:
        return Asked(name, file, None, str(e))
