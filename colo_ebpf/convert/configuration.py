# SPDX-License-Identifier: GPL-2.0-only
"""A configuration file, written. What is as it is by itself is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import VmTable
from colo_ebpf.shared import Shared

_START = """\
[start]
role = "primary"                      # the one that starts the VM for the first time
"""


def text(vm: VmTable, file: Path, shared: Shared | None = None) -> str:
    """Of the VM. Other tables are as in the example, or left to what the host's VMs share.

    ConfigError if it would be refused.
    """
    what = f"the rest is in {shared.file}" if shared else "what follows [host] has to be filled in"
    head = f"# {vm.name}, imported; {what}.\n\n"
    said = head + "\n".join(_vm(vm)) + "\n" + (_START if shared else _rest(vm.name))
    parse_config(said, file, shared)
    return said


def _rest(name: str) -> str:
    _, table, rest = EXAMPLE.partition("[host]")
    return table + re.sub(r"/web\b", f"/{name}", rest)


def _vm(vm: VmTable) -> Iterator[str]:
    yield "[vm]"
    yield from _keys(vm)
    for name, parts in (("nic", vm.nic), ("disk", vm.disk)):
        for part in parts:
            yield f"\n[[vm.{name}]]"
            yield from _keys(part)
    yield ""


def _keys(part: msgspec.Struct) -> Iterator[str]:
    for one in msgspec.structs.fields(part):
        value = getattr(part, one.name)
        if one.name in ("nic", "disk") or (not one.required and value == _default(one)):
            continue
        yield f"{one.encode_name} = {_value(value)}"


def _default(one: msgspec.structs.FieldInfo) -> Any:
    return one.default_factory() if one.default is msgspec.NODEFAULT else one.default


def _value(value: Any) -> str:
    """TOML's strings are JSON's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
