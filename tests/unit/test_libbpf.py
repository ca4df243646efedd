# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel fills is where its header says, by the compiler."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import libbpf

TOLD: list[tuple[type[ctypes.Structure], str, dict[str, str]]] = [
    (libbpf.MapTold, "bpf_map_info", {}),
    (libbpf.ProgramTold, "bpf_prog_info", {}),
    (libbpf.LinkTold, "bpf_link_info", {"tcx_ifindex": "xdp.ifindex"}),  # the same in any union
]
# Not in the headers of Debian 12; or a bit, which has no place.
NOT_THERE = {"union", "tcx_attach_type", "gpl_compatible"}


@pytest.mark.parametrize(("kind", "name", "other"), TOLD, ids=str)
def test_each_field_is_in_its_place(
    kind: type[ctypes.Structure], name: str, other: dict[str, str], tmp_path: Path
) -> None:
    fields = [field for field, *_ in kind._fields_ if field not in NOT_THERE]
    wanted = {field: getattr(kind, field).offset for field in fields}
    places = [f"(long)offsetof(struct {name}, {other.get(field, field)})" for field in fields]
    source, binary = tmp_path / "told.c", tmp_path / "told"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/bpf.h>\nint main(void)\n{\n"
        + "".join(f'\tprintf("%ld\\n", {place});\n' for place in places)
        + "\treturn 0;\n}\n"
    )
    subprocess.run(["gcc", "-o", str(binary), str(source)], check=True)
    out = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout
    assert dict(zip(fields, map(int, out.split()), strict=True)) == wanted
