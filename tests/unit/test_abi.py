# SPDX-License-Identifier: GPL-2.0-only
"""The header and its ctypes mirror: every size, offset and number, as the compiler has them."""

from __future__ import annotations

import ctypes
import enum
import re
import subprocess
from pathlib import Path

import pytest

from colo_ebpf import model
from colo_ebpf.datapath.bpf import abi
from tests.capabilities import ROOT

HEADER = ROOT / "bpf" / "include" / "colo_abi.h"
ENUMS: list[tuple[str, type[enum.IntEnum] | type[enum.IntFlag]]] = [
    ("COLO_PROG_", abi.Prog),
    ("COLO_V_", abi.Verdict),
    ("COLO_R_", abi.Reason),
    ("COLO_LIVE_", abi.LiveWord),
    ("COLO_SLOT_", abi.SlotState),
    ("COLO_EV_", model.PlaneEventKind),
    ("COLO_F_", abi.FlowFlag),
    ("COLO_OFF_", abi.OffFlag),
    ("COLO_", model.Mode),
    ("COLO_SLOT_", abi.SlotKind),
    ("COLO_LINE_", abi.Line),
    ("COLO_LATE_", abi.LateRow),
]
CONSTANTS = {
    "COLO_ABI_VERSION": abi.ABI_VERSION,
    "COLO_TURNING_BIT": abi.TURNING_BIT,
    "COLO_BEACON_ETHERTYPE": abi.BEACON_ETHERTYPE,
    "COLO_LEAVE_ETHERTYPE": abi.LEAVE_ETHERTYPE,
    "COLO_BOUNDS": abi.BOUNDS,
    "COLO_HOLD_PART": abi.HOLD_PART,
    "COLO_FLUSH_SLOTS": abi.FLUSH_SLOTS,
    "COLO_PARK_CUTS": abi.PARK_CUTS,
    "COLO_LANES": abi.LANES,
    "COLO_NICS": abi.NICS,
    "COLO_DGRAM_WAYS": abi.DGRAM_WAYS,
    "COLO_MISMATCHES": abi.MISMATCHES,
    "COLO_LATE_BUCKETS": abi.LATE_BUCKETS,
    "COLO_LATES": abi.LATES,
    "COLO_FRESH_NS": model.FRESH_NS,
    "COLO_LIVE_WORDS": abi.LIVE_WORDS,
    "COLO_REASONS": abi.REASONS,
    "COLO_OPEN": model.Phase.OPEN,
    "COLO_TURNING": model.Phase.TURNING,
}


def _expected() -> dict[str, int]:
    wanted = dict(CONSTANTS)
    for prefix, kind in ENUMS:
        wanted |= {f"{prefix}{one.name}": int(one) for one in kind}
    for name, struct in abi.STRUCTS.items():
        wanted[f"sizeof(struct {name})"] = ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            wanted[f"offsetof(struct {name}, {field})"] = getattr(struct, field).offset
    return wanted


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every expression as gcc computes it from the shipped header."""
    directory: Path = tmp_path_factory.mktemp("abi")
    lines = [f'printf("%s=%lld\\n", "{e}", (long long)({e}));' for e in _expected()]
    source = directory / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {" ".join(lines)} return 0; }}\n'
    )
    binary = directory / "abi"
    subprocess.run(["gcc", "-o", str(binary), str(source)], check=True)
    out = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout
    return {
        name: int(value)
        for name, _, value in (row.rpartition("=") for row in out.split("\n") if row)
    }


def test_both_sides_agree(compiled: dict[str, int]) -> None:
    assert compiled == {name: int(value) for name, value in _expected().items()}


@pytest.mark.parametrize(
    ("name", "prefix", "kind"),
    [
        ("prog", "PROG_", abi.Prog),
        ("verdict", "V_", abi.Verdict),
        ("reason", "R_", abi.Reason),
        ("mode", "", model.Mode),
        ("flow_flag", "F_", abi.FlowFlag),
        ("off_flag", "OFF_", abi.OffFlag),
        ("slot_kind", "SLOT_", abi.SlotKind),
        ("slot_state", "SLOT_", abi.SlotState),
        ("line", "LINE_", abi.Line),
        ("late_row", "LATE_", abi.LateRow),
        ("event_kind", "EV_", model.PlaneEventKind),
    ],
)
def test_python_knows_every_enumerator(name: str, prefix: str, kind: type[enum.IntEnum]) -> None:
    body = re.search(rf"enum colo_{name} {{(.*?)}};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    names = set(re.findall(rf"^\tCOLO_{prefix}(\w+)", body[1], re.MULTILINE))
    assert names == {one.name for one in kind}


def test_every_program_and_map_name_fits_the_kernel() -> None:
    sources = [*(ROOT / "bpf").glob("*.c"), *(ROOT / "bpf" / "include").glob("*.h")]
    text = "\n".join(path.read_text() for path in sources)
    programs = re.findall(r"^int (colo_\w+)\(struct __sk_buff", text, re.MULTILINE)
    maps = re.findall(r"^BPF_\w+\((?:\"\w+\", [\w ]+, [\w ]+, )?(colo_\w+)", text, re.MULTILINE)
    of_their_callers = {  # what they do is counted there
        *("colo_owe", "colo_long_pvm", "colo_long_svm", "colo_rst_pvm", "colo_rst_svm"),
    }
    assert len(set(programs) - of_their_callers) == len(abi.Prog)
    assert maps
    assert [name for name in programs + maps if len(name) > 15] == []
