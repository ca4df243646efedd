# SPDX-License-Identifier: GPL-2.0-only
"""Loss, doubles and delay on one hook of one device, by tests/live/noise.c."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from colo_ebpf.datapath.bpf import kernel_headers, loader
from colo_ebpf.datapath.net import namespaces, netdev, tc
from colo_ebpf.datapath.net.hooks import Filter, Hook
from colo_ebpf.lab.bed import CACHE

_COUNTS = ("passed", "lost", "doubled", "delayed")
_PRIORITY = 100


class _Wire(ctypes.Structure):
    _fields_ = (
        ("lose", ctypes.c_uint32),
        ("twice", ctypes.c_uint32),
        ("late", ctypes.c_uint32),
        ("home", ctypes.c_uint32),
    )


class Noise:
    """Made inside the device's namespace; quiet until `set` is called."""

    def __init__(self, namespace: str, device: str, ingress: bool, number: int) -> None:
        from bcc import BPF

        tree = kernel_headers.find(loader.trees(CACHE))
        if tree:
            os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        near, far = f"ln{number}", f"lf{number}"
        namespaces.create_veth(near, far, namespace, namespace, 1700)
        self._home = netdev.index_of(device)
        flags = 1 if ingress else 0
        source = Path(__file__).with_name("noise.c").read_text()
        defines = [f"-DLOOP={netdev.index_of(near)}", f"-DFLAGS={flags}", "-Wno-macro-redefined"]
        self._bpf: Any = BPF(text=source.encode(), cflags=defines)
        self.set(0, 0, 0)
        programs = {n: self._bpf.load_func(n, BPF.SCHED_CLS).fd for n in (b"noise", b"turn")}
        self._bpf.free_bcc_memory()
        turn = Filter(far, "", Hook.INGRESS, "turn")
        noise = Filter(device, "", Hook.INGRESS if ingress else Hook.EGRESS, "noise")
        tc.attach(turn, programs[b"turn"], _PRIORITY)
        tc.attach(noise, programs[b"noise"], _PRIORITY)

    def close(self) -> None:
        """Let go of maps and programs."""
        self._bpf.cleanup()

    def set(self, lose: float, twice: float, late: float) -> None:
        """Chances, 0 to 1."""
        chances = (int(chance * 65536) for chance in (lose, twice, late))
        self._bpf[b"wire"][ctypes.c_int(0)] = _Wire(*chances, self._home)

    def counts(self) -> dict[str, int]:
        """What became of the frames."""
        table = self._bpf[b"count"]
        return {name: int(table[ctypes.c_int(n)].value) for n, name in enumerate(_COUNTS)}
