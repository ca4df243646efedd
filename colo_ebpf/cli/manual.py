# SPDX-License-Identifier: GPL-2.0-only
"""The configuration's keys as a manual page, and as values for the reference. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from colo_ebpf import __version__
from colo_ebpf.cli.effects import EFFECTS
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.schema import Config

_HEAD = f"""\
.TH COLO-EBPF 5 "" "colo-ebpf {__version__}" "File formats"
.SH NAME
colo-ebpf \\- configuration of a protected virtual machine
.SH SYNOPSIS
.I /etc/colo-ebpf/vms/NAME.toml
.br
.I /etc/colo-ebpf/config.toml
.SH DESCRIPTION
A TOML file for one VM on one host. Its daemon is the unit
.B colo-ebpf@NAME.service
for a file below
.IR vms ,
or
.BR colo-ebpf.service .
What all files below
.I vms
have in common may be in
.IR /etc/colo-ebpf/host.toml ,
key by key; what a VM's own file says wins.
Each host has a file of its own for the VM. What it says of the guest is the same on both; names,
addresses and paths are the host's. An unknown key is refused.
.B colo-ebpf config check FILE
checks a file.
.PP
A key without a default has to be given. Keys that end in
.B \\-ms
are in milliseconds, in
.B \\-s
in seconds, in
.B \\-mib
in MiB.
"""
_TAIL = """\
.SH SEE ALSO
.BR colo-ebpf (1)
"""


def page() -> str:
    """In roff."""
    return _HEAD + "".join(_tables()) + _example() + _TAIL


@dataclass(frozen=True)
class Key:
    """One key of a table, in words."""

    name: str
    kind: str  # what may be given
    default: str  # in TOML; "": it has to be given
    effect: str


@dataclass(frozen=True)
class Table:
    """One table of the file."""

    title: str  # with its brackets
    summary: str
    keys: tuple[Key, ...]


def tables() -> Iterator[Table]:
    """Each table, as they follow each other in the schema."""
    for name, kind, many in _structs(Config, ""):
        fields = inspect.type_info(kind).fields  # type: ignore[attr-defined]
        plain = [field for field in fields if _struct_of(field.type)[0] is None]
        yield Table(
            f"[[{name}]]" if many else f"[{name}]",
            _summary(kind),
            tuple(
                Key(f.encode_name, _kind(f.type), _default(f), EFFECTS[name][f.encode_name])
                for f in plain
            ),
        )


def _tables() -> Iterator[str]:
    for table in tables():
        yield f".SH TABLE {_escaped(table.title)}\n{_escaped(table.summary)}\n"
        for key in table.keys:
            yield f".TP\n.B {_escaped(key.name)}\n{_escaped(key.kind)}"
            default = f"default {key.default}" if key.default else "has to be given"
            yield f"; {_escaped(default)}.\n{_escaped(key.effect.replace('`', ''))}\n"


def _structs(kind: Any, path: str) -> Iterator[tuple[str, Any, bool]]:
    """Each table below, and whether it is an array of tables."""
    for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        inner, many = _struct_of(field.type)
        if inner is not None:
            name = f"{path}.{field.encode_name}".lstrip(".")
            yield name, inner, many
            yield from _structs(inner, name)


def _struct_of(kind: inspect.Type) -> tuple[Any, bool]:
    many = isinstance(kind, inspect.ListType)
    inner = kind.item_type if isinstance(kind, inspect.ListType) else kind
    return (inner.cls, many) if isinstance(inner, inspect.StructType) else (None, many)


def _summary(kind: Any) -> str:
    """The docstring's first paragraph, without the marks of Python's documentation."""
    text = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    text = re.sub(r"^``\[\S+\]``: ", "", text)
    text = re.sub(r"`+([^`]+)`+", lambda name: name[1].replace("_", "-"), text)
    return text[:1].upper() + text[1:]


def _kind(kind: inspect.Type) -> str:
    """What may be given, in words."""
    if isinstance(kind, inspect.IntType):
        return f"integer, {kind.ge} to {kind.le}" if kind.le is not None else "integer"
    if isinstance(kind, inspect.StrType) and kind.pattern:
        if words := re.fullmatch(r"\^\(([a-z0-9|-]+)\)\$", kind.pattern):
            return " or ".join(f'"{word}"' for word in words[1].split("|"))
        return f"string that matches {kind.pattern}"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(map(str, kind.values))
    return _of_text(kind)


def _of_text(kind: inspect.Type) -> str:
    if not isinstance(kind, inspect.ListType):
        return "string"
    whole = isinstance(kind.item_type, inspect.IntType)
    return "array of integers" if whole else "array of strings"


def _default(field: inspect.Field) -> str:
    """In TOML; "": it has to be given."""
    if field.required:
        return ""
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    return msgspec.json.encode(value).decode()


def _example() -> str:
    lines = "\n".join(_escaped(line) for line in EXAMPLE.splitlines())
    return f".SH EXAMPLE\n.nf\n{lines}\n.fi\n"


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha")
    return f"\\&{text}" if text[:1] in (".", "'") else text
