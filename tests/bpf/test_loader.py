# SPDX-License-Identifier: GPL-2.0-only
"""What cannot be loaded or attached says why, and where to look."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import compiler, loader
from colo_ebpf.datapath.bpf.image import Source
from colo_ebpf.datapath.bpf.image_cache import Kept
from colo_ebpf.datapath.net import namespaces, netdev, tunnel, vxlan
from colo_ebpf.errors import AttachError, DatapathError, LoadError
from colo_ebpf.lab import mounts
from colo_ebpf.lab.bed import CACHE
from tests.bpf.attached import attached
from tests.bpf.by_bcc import SIZES, described
from tests.bpf.rig import Rig
from tests.capabilities import require


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system."""
    path = tmp_path / "bpf"
    mounts.mount_bpf(path)
    yield path
    mounts.unmount(path)


def _load(tmp_path: Path, body: str) -> loader.Module:
    source = tmp_path / "odd.c"
    source.write_text(f"#include <uapi/linux/bpf.h>\nint odd(struct __sk_buff *skb)\n{body}\n")
    return loader.load_one(source, ("odd",), tmp_path, SIZES, CACHE)


def test_the_verifiers_log_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="verifier refuses odd") as caught:
        _load(tmp_path, "{ return *(char *)(long)skb->data; }")
    assert "invalid access to packet" in str(caught.value)


def test_the_compilers_message_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not compile") as caught:
        _load(tmp_path, "{ return no_such_thing; }")
    assert "no_such_thing" in str(caught.value)


def test_what_was_made_is_kept_though_another_source_failed(tmp_path: Path) -> None:
    """On a slow host it took minutes: the next start of the daemon finds it."""
    sources = [
        Source(
            f"{name}.c",
            f"#include <uapi/linux/bpf.h>\nint {name}(void *ctx)\n{body}\n",
            (),
            (name,),
        )
        for name, body in (("good", "{ return 0; }"), ("bad", "{ return no_such_thing; }"))
    ]
    with pytest.raises(LoadError, match=r"bad\.c: does not compile"):
        loader.images(sources, tmp_path)
    kept = Kept(tmp_path / "programs")
    assert [kept.find(source) is not None for source in sources] == [True, False]


def test_a_compiler_that_dies_is_an_error(tmp_path: Path) -> None:
    compiling = compiler.Compilation(Source("odd.c", "", (), ("odd",)), tmp_path)
    os.kill(compiling.pid, signal.SIGKILL)
    with pytest.raises(LoadError, match=r"odd\.c: the compiler ended"):
        compiling.image()


@pytest.mark.parametrize("name", loader.PROGRAMS)
def test_what_is_loaded_is_what_bcc_loads(name: str, bpffs: Path) -> None:
    """Instructions, what the verifier made of them, lines of the sources, types, maps."""
    command = [sys.executable, "-m", "tests.bpf.by_bcc", name]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    theirs = json.loads(done.stdout)
    path = loader.source_directory() / name
    ours = loader.load_one(path, loader.PROGRAMS[name], bpffs, SIZES, CACHE)
    found = described(ours.programs)
    ours.close()
    for what in ("programs", "types", "maps"):
        assert found[what] == theirs[what]
    assert any("line_num" in one["code"] for one in found["programs"].values())
    assert found["maps"]["colo_conf"]["typed"]


def test_pins_of_another_layout_are_refused() -> None:
    with Rig() as rig:
        loader.check_pins(rig._pins, loader.images(loader.shipped(SIZES), CACHE))
        other = loader.Sizes(flows=512, hold_slots=1024, dgram_buckets=64)
        images = loader.images(loader.shipped(other), CACHE)
        with pytest.raises(LoadError, match="colo_flows: pinned with 256 entries"):
            loader.check_pins(rig._pins, images)


def test_a_directory_is_no_bpf_file_system(tmp_path: Path) -> None:
    with pytest.raises(DatapathError, match="mount -t bpf bpf"):
        loader.require_bpffs(tmp_path)


@pytest.mark.parametrize(("address", "need"), [("192.0.2.1", 1550), ("2001:db8::1", 1570)])
def test_a_link_too_small_for_the_tunnel_is_refused(address: str, need: int) -> None:
    names = [f"colot{os.getpid()}m{i}" for i in range(2)]
    try:
        for name in names:
            namespaces.create(name)
        namespaces.create_veth("link0", "link0", *names, need - 1)

        def check() -> None:
            wanted = tunnel.needed_mtu(1500, address, sealed=False)
            vxlan.check_link_mtu("link0", 1500, wanted)

        with pytest.raises(AttachError, match=rf"{need - 1} is too .* set it to {need} or more"):
            namespaces.run_in(names[0], check)
        namespaces.run_in(names[0], lambda: netdev.set_up("link0", need))
        namespaces.run_in(names[0], check)
    finally:
        for name in names:
            namespaces.remove(name)


def test_filters_are_ours_by_name_and_attaching_again_replaces_them() -> None:
    from colo_ebpf.model import VmRole

    with Rig() as rig:
        import asyncio

        for _ in range(2):
            asyncio.run(rig.plane.take_role(VmRole.PRIMARY))
            assert attached("tap0") == {
                "ingress": ["colo_cmp_pvm", "colo_last_out"],
                "egress": ["colo_last_in", "colo_mir_cli"],
            }
            assert attached("vx0") == {"ingress": ["colo_cmp_svm"]}
