# SPDX-License-Identifier: GPL-2.0-only
"""Counts what programs call in the kernel, with its function tracer.

Look-ups in hash tables and helpers are functions there. Look-ups in arrays are not: the verifier
turns them into an addition and a comparison.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from colo_ebpf.errors import LabError
from colo_ebpf.lab import mounts

WHY = "the kernel has no function tracer"
LOOKUPS = ("__htab_map_lookup_elem", "htab_map_update_elem", "htab_map_delete_elem")
HELPERS = (
    "bpf_skb_load_bytes",
    "bpf_skb_store_bytes",
    "bpf_skb_change_tail",
    "bpf_skb_adjust_room",
    "bpf_csum_diff",
    "bpf_l4_csum_replace",
    "bpf_clone_redirect",
    "bpf_skb_get_tunnel_key",
    "bpf_skb_get_tunnel_opt",
    "bpf_skb_set_tunnel_key",
    "bpf_skb_set_tunnel_opt",
    "bpf_ktime_get_boot_ns",
    "bpf_ktime_get_ns",
    "bpf_user_rnd_u32",
)


class Tracer:
    """Counts calls on one CPU. `with tracer() as one`; None where the kernel cannot."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    def counted(self, work: Callable[[], None]) -> Counter[str]:
        """Calls by function while `work` runs on this CPU."""
        self._write("trace", "")
        self._write("tracing_on", "1")
        try:
            work()
        finally:
            self._write("tracing_on", "0")
        found: Counter[str] = Counter()
        for line in (self._instance / "trace").read_text().splitlines():
            if not line.startswith("#"):
                found[line.rpartition(": ")[2].partition(" ")[0]] += 1
        return found

    def begin(self, cpu: int) -> None:
        """Our functions, one CPU, not yet on."""
        self._write("tracing_on", "0")
        self._write("tracing_cpumask", f"{1 << cpu:x}")
        for name in (*LOOKUPS, *HELPERS):
            with contextlib.suppress(OSError):  # one this kernel has no such function of
                self._append("set_ftrace_filter", name)
        self._write("current_tracer", "function")

    def end(self) -> None:
        """Nothing is traced any more."""
        self._write("current_tracer", "nop")

    def _write(self, name: str, text: str) -> None:
        (self._instance / name).write_text(f"{text}\n")

    def _append(self, name: str, text: str) -> None:
        with (self._instance / name).open("a") as file:
            file.write(f"{text}\n")


@contextlib.contextmanager
def tracer(cpu: int) -> Iterator[Tracer | None]:
    """A tracer instance of our own: what others trace is not touched."""
    directory = Path(tempfile.mkdtemp(prefix="colo-bench-trace-"))
    instance = directory / "instances" / f"colo-bench-{os.getpid()}"
    try:
        try:
            mounts.mount_trace(directory)
            instance.mkdir()
            one = Tracer(instance)
            one.begin(cpu)
        except (LabError, OSError):
            yield None
            return
        try:
            yield one
        finally:
            one.end()
    finally:
        with contextlib.suppress(OSError):
            instance.rmdir()
        mounts.unmount(directory)
        directory.rmdir()


def readable(calls: Counter[str], of: int) -> str:
    """Helpers by name, per frame, most first."""
    listed = [
        f"{name.removeprefix('bpf_')} {count / of:.3g}"
        for name, count in calls.most_common()
        if name in HELPERS and count
    ]
    return ", ".join(listed) or "none"


def lookups(calls: Counter[str], of: int) -> float:
    """Look-ups in hash tables, per frame."""
    return sum(calls[name] for name in LOOKUPS) / of
