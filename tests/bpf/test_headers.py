# SPDX-License-Identifier: GPL-2.0-only
"""Each header compiles alone: whoever includes it needs to know of no other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import compiler, kernel_headers, loader
from colo_ebpf.datapath.bpf.image import Image, Source
from colo_ebpf.lab.bed import CACHE
from tests.bpf.by_bcc import SIZES
from tests.capabilities import ROOT, require

HEADERS = sorted(path.name for path in (ROOT / "bpf" / "include").glob("*.h"))
PROGRAM = '#include "{}"\nint alone(struct __sk_buff *skb)\n{{\n	return 0;\n}}\n'


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Image]]]:
    """What becomes of each, two at a time."""
    require("root", "bpf")
    directory = tmp_path_factory.mktemp("alone")
    kernel_headers.find(loader.trees(CACHE))  # made once, before each of them would

    def image(header: str) -> Image:
        path = directory / f"{Path(header).stem}.c"
        path.write_text(PROGRAM.format(header))
        text = compiler.flatten(path, loader.source_directory() / "include")
        source = Source(path.name, text, loader.flags(SIZES), ("alone",))
        return compiler.Compilation(source, loader.trees(CACHE)).image()

    with ThreadPoolExecutor(2) as workers:
        yield {header: workers.submit(image, header) for header in HEADERS}


@pytest.mark.parametrize("header", HEADERS)
def test_it_compiles_alone(compiled: dict[str, Future[Image]], header: str) -> None:
    (program,) = compiled[header].result().programs
    assert program.name == "alone"
