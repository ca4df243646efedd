# SPDX-License-Identifier: GPL-2.0-only
"""A configuration file as a value. An unknown key is refused with the nearest known one.

A value out of range names its place and what is allowed.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf import defaults
from colo_ebpf.config.checks import cross_check
from colo_ebpf.config.schema import Config
from colo_ebpf.errors import ConfigError
from colo_ebpf.shared import Shared, file_for, merged, origin, wrong_key


def parse_config(text: str, file: Path, shared: Shared | None = None) -> Config:
    """The configuration in `text`, over what is shared with other VMs.

    ConfigError says file, place, value and remedy.
    """
    own, shared = _raw(text, file), shared or Shared(file)
    try:
        config = _derived(msgspec.convert(merged(own, shared.raw), Config))
    except msgspec.ValidationError as e:
        where, what = _readable(str(e))
        raise ConfigError(f"{origin(where, own, file, shared)}: {where}{what}") from e
    cross_check(config, Path(f"{file} with {shared.file}") if shared.raw else file)
    return config


_LEFT_OUT = (
    *("device", "vxlan_port", "nbd_port", "migration_port", "heartbeat_port"),
    "wireguard_port",
)


def _derived(config: Config) -> Config:
    """With what was left out of `[link]` and `[host]`."""
    left_out = {
        name: getattr(defaults, name)(config.vm.name)
        for name in _LEFT_OUT
        if not getattr(config.link, name)
    }
    link, host = msgspec.structs.replace(config.link, **left_out), config.host
    host = msgspec.structs.replace(
        host,
        run_dir=host.run_dir or defaults.run_dir(config.vm.name),
        state_dir=host.state_dir or defaults.state_dir(config.vm.name),
    )
    return msgspec.structs.replace(config, link=link, host=host)


def _known_keys(kind: Any = Config, path: str = "") -> dict[str, dict[str, Any]]:
    """Keys and their types by table path (``vm.nic`` for an array of tables)."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    found: dict[str, dict[str, Any]] = {path: {f.encode_name: f.type for f in info.fields}}
    for name, of in list(found[path].items()):
        inner = of.item_type if isinstance(of, msgspec.inspect.ListType) else of
        if isinstance(inner, msgspec.inspect.StructType):
            found |= _known_keys(inner.cls, f"{path}.{name}".lstrip("."))
    return found


_TYPES = _known_keys()
KEYS = {path: list(types) for path, types in _TYPES.items()}


def _refuse_unknown(table: dict[str, Any], path: str, file: Path) -> None:
    known = KEYS[path]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            where = f"[{path}]" if path else "the top level"
            raise ConfigError(f"{file}: unknown key {key!r} in {where}{hint}")
        inner = f"{path}.{key}".lstrip(".")
        if inner not in KEYS:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                _refuse_unknown(part, inner, file)


def _raw(text: str, file: Path) -> dict[str, Any]:
    """Its tables; every key is a known one."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        why = "nested too deep" if isinstance(e, RecursionError) else e
        raise ConfigError(f"{file}: not valid TOML: {why}") from e
    _refuse_unknown(raw, "", file)
    return raw


def _readable(message: str) -> tuple[str, str]:
    """msgspec's message with the place first: ``vm.memory-mib``, ``: Expected ...``."""
    match = re.fullmatch(r"(?P<what>.*?) - at `\$\.?(?P<where>.*)`", message)
    if match is None:
        return "", message
    where, what = match["where"], match["what"]
    table, _, key = re.sub(r"\[\d+\]", "", where).rpartition(".")
    kind = _TYPES.get(table, {}).get(key)
    if isinstance(kind, msgspec.inspect.LiteralType):
        allowed = ", ".join(map(str, kind.values))
        what = re.sub(r"^Invalid enum value (.*)", rf"\1 is none of {allowed}", what)
    return where, f": {what}"


def load_config(file: Path) -> Config:
    """Read and check a VM's file, and what all VMs of its host share.

    Raises ConfigError, which says file, place, value and remedy.
    """
    return parse_config(_text(file), file, shared_with(file))


def shared_with(file: Path) -> Shared | None:
    """What goes with a VM's file, if that is in a directory `vms` with a `host.toml` beside it."""
    beside = file_for(file.absolute())
    if beside is None or not beside.exists():
        return None
    raw = _raw(_text(beside), beside)
    if key := wrong_key(raw):
        raise ConfigError(f"{beside}: {key} is each VM's own: it belongs into a file of vms/")
    return Shared(beside, raw)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as e:
        raise ConfigError(f"{file}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: not UTF-8 text") from e


def check_paths(config: Config, file: Path) -> None:
    """What the file names has to exist before the daemon starts.

    Raises ConfigError for the first that does not.
    """
    for name, path in (
        ("vm.kernel", config.vm.kernel),
        ("vm.initrd", config.vm.initrd),
        ("vm.preload", config.vm.preload),
        ("vm.firmware", config.vm.firmware),
        ("vm.firmware-vars", config.vm.firmware_vars),
        *(("vm.disk.path", disk.path) for disk in config.vm.disk),
        ("peer.key-file", config.peer.key_file),
        ("arbiter.ca-file", config.arbiter.ca_file),
        ("arbiter.cert-file", config.arbiter.cert_file),
        ("arbiter.key-file", config.arbiter.key_file),
        ("fence.command", config.fence.command[0] if config.fence.command else ""),
        ("notify.command", config.notify.command[0] if config.notify.command else ""),
        ("watchdog.device", config.watchdog.device),
    ):
        if path and not Path(path).exists():
            raise ConfigError(f"{file}: {name}: {path} does not exist")
