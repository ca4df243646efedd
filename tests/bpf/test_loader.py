# SPDX-License-Identifier: GPL-2.0-only
"""What cannot be loaded or attached says why, and where to look."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from colo_ebpf.datapath import loader, netdev
from colo_ebpf.errors import AttachError, DatapathError, LoadError
from tests.bpf.rig import Rig
from tests.capabilities import require

SIZES = loader.Sizes(flows=256, hold_slots=1024, dgram_buckets=64)
CACHE = Path(tempfile.gettempdir()) / "colo-test-headers"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


def _load(tmp_path: Path, body: str) -> loader.Module:
    source = tmp_path / "odd.c"
    source.write_text(f"#include <uapi/linux/bpf.h>\nint odd(struct __sk_buff *skb)\n{body}\n")
    with loader.Compiler() as compiler:
        return compiler.load(source, ("odd",), tmp_path, SIZES, CACHE)


def test_the_verifiers_log_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="verifier refuses odd") as caught:
        _load(tmp_path, "{ return *(char *)(long)skb->data; }")
    assert "invalid access to packet" in str(caught.value)


def test_the_compilers_message_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not compile") as caught:
        _load(tmp_path, "{ return no_such_thing; }")
    assert "no_such_thing" in str(caught.value)


def test_a_compiler_that_dies_is_an_error(tmp_path: Path) -> None:
    with loader.Compiler() as compiling:
        os.kill(compiling.pid, signal.SIGKILL)
        with pytest.raises(LoadError, match=r"odd\.c: the compiler ended"):
            compiling.load(tmp_path / "odd.c", ("odd",), tmp_path, SIZES, CACHE)


def test_pins_of_another_layout_are_refused() -> None:
    with Rig() as rig:
        loader.check_pins(rig._pins, SIZES)
        other = loader.Sizes(flows=512, hold_slots=1024, dgram_buckets=64)
        with pytest.raises(LoadError, match="colo_flows: pinned with 256 entries"):
            loader.check_pins(rig._pins, other)


def test_a_directory_is_no_bpf_file_system(tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match="mount -t bpf bpf"):
        loader.require_bpffs(tmp_path)


def test_a_link_too_small_for_the_tunnel_is_refused() -> None:
    names = [f"colot{os.getpid()}m{i}" for i in range(2)]
    try:
        for name in names:
            netdev.create_namespace(name)
        netdev.create_veth("link0", "link0", *names, 1549)
        with pytest.raises(AttachError, match=r"1549 is too small .* set it to 1550 or more"):
            netdev.in_namespace(names[0], lambda: netdev.check_link_mtu("link0", 1500))
        netdev.in_namespace(names[0], lambda: netdev.set_up("link0", 1550))
        netdev.in_namespace(names[0], lambda: netdev.check_link_mtu("link0", 1500))
    finally:
        for name in names:
            netdev.remove_namespace(name)


def test_filters_are_ours_by_name_and_attaching_again_replaces_them() -> None:
    from colo_ebpf.datapath import tc
    from colo_ebpf.model import VmRole

    with Rig() as rig:
        import asyncio

        for _ in range(2):
            asyncio.run(rig.plane.take_role(VmRole.PRIMARY))
            assert tc.attached("tap0") == {
                "ingress": ["colo_cmp_pvm", "colo_last_out"],
                "egress": ["colo_last_in", "colo_mir_cli"],
            }
            assert tc.attached("vx0") == {"ingress": ["colo_cmp_svm"]}
