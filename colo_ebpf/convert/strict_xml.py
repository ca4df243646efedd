# SPDX-License-Identifier: GPL-2.0-only
"""XML as libvirt writes it: without document types, so without entities that could grow."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from colo_ebpf.convert.imported import MOST_BYTES
from colo_ebpf.errors import ConfigError

_MOST_DEPTH = 256  # of a chain of backing files


class _Builder:
    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ConfigError(f"XML is nested more than {_MOST_DEPTH} deep")
        self.tree.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self.tree.end(tag)


def _refuse(*_: Any) -> None:
    raise ConfigError("XML with a DOCTYPE is not read: libvirt writes none")


def element(data: bytes) -> Element:
    """The root. ConfigError says what is wrong with it."""
    if len(data) > MOST_BYTES:
        raise ConfigError(f"XML of more than {MOST_BYTES} bytes is no domain")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.tree.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise ConfigError(f"not valid XML: {e}") from e
    root: Element = builder.tree.close()
    return root
