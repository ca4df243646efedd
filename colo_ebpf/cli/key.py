# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf key rotate`: another key for the pair, while it is protected.

The new key lies beside the old one, in a file of its own, until the daemons of both hosts speak it.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

from colo_ebpf.cli import vms
from colo_ebpf.config.reading import load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import ConfigError, ControlError, NotInTimeError

_KEY_BYTES = 32
_MOST_BYTES = 4096


def rotate(file: Path, given: bytes | None) -> dict[str, Any]:
    """The next step on this host. `given`: the new key, made on the other host.

    NotInTimeError: the other host does not speak it yet; nothing is changed.
    """
    config = load_config(file)
    settings.key(config)
    following = settings.following_key_file(config)
    if given is not None:
        _write(following, given.strip())
        return _step("taken", config, following)
    if not following.exists():
        _write(following, secrets.token_hex(_KEY_BYTES).encode())
        return _step("made", config, following)
    settings.read_key(following)
    for one in _sharing(config, file):
        _require_changed(one)
    _replace(following, Path(config.peer.key_file))
    return _step("done", config, following)


def read(source: Path) -> bytes:
    """The new key, from a file or from standard input (`-`)."""
    try:
        return sys.stdin.buffer.read(_MOST_BYTES) if str(source) == "-" else source.read_bytes()
    except OSError as e:
        raise ConfigError(f"{source}: {e.strerror}") from e


def _step(what: str, config: Config, following: Path) -> dict[str, Any]:
    return {"step": what, "file": str(following), "peer": config.peer.name}


def _write(path: Path, key: bytes) -> None:
    """Whole or not at all, and never to be read by others."""
    if len(key) < settings.KEY_LEAST_BYTES:
        raise ConfigError(
            f"the new key has {len(key)} bytes, at least {settings.KEY_LEAST_BYTES} are needed"
        )
    atomic.write(path, key + b"\n", mode=0o600)


def _replace(following: Path, path: Path) -> None:
    try:
        following.replace(path)
    except OSError as e:
        raise ControlError(f"cannot write {path}: {e.strerror}") from e


def _sharing(config: Config, file: Path) -> list[Config]:
    """All VMs of this host with that key: each of their daemons has to have changed."""
    found = {str(file.resolve()): config}
    for other in vms.files(vms.DIRECTORY):
        one = load_config(other)
        if Path(one.peer.key_file) == Path(config.peer.key_file):
            found[str(other.resolve())] = one
    return list(found.values())


def _require_changed(config: Config) -> None:
    said = control_socket.ask(vms.socket_of(config), "status")["key"]
    if not said["changed"]:
        raise NotInTimeError(
            f"{config.vm.name}: {config.peer.name} does not speak the new key yet: bring it there "
            f"(see below), and wait a few seconds.\n"
            + _bring(config.peer.name, str(settings.following_key_file(config)))
        )


def _bring(peer: str, file: str) -> str:
    return f"  ssh {peer} colo-ebpf key rotate --from - < {file}"


def readable(done: dict[str, Any]) -> str:
    """What was done, and what is next."""
    peer, file = done["peer"], done["file"]
    if done["step"] == "made":
        return (
            f"{file}: a new key. Bring it to {peer}:\n"
            f"{_bring(peer, file)}\n"
            "Then run `colo-ebpf key rotate` once more, here and there."
        )
    if done["step"] == "taken":
        return f"{file}: taken. Run `colo-ebpf key rotate` once more, on {peer} and here."
    return f"the new key is in force here; the old one opens nothing any more. Now on {peer}."
