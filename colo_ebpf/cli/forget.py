# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf forget`: nothing of a VM's protection is left on this host, but what people made.

A VM that runs here is refused. `--all` leaves such a VM as it is, and forgets the others: a package
that is removed must not end VMs.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.cli import vms
from colo_ebpf.config.reading import load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import forgetting
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.control.decision.record import Record
from colo_ebpf.errors import ColoError


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one VM. `removed`: names and paths; `why`: why it was left, "": it was not;
    `left`: what has to be known of its images, in sentences."""

    vm: str
    removed: tuple[str, ...] = ()
    why: str = ""
    left: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vm": self.vm,
            "removed": list(self.removed),
            "why": self.why,
            "left": list(self.left),
        }


def run(args: argparse.Namespace, confirm: Callable[[argparse.Namespace, str], None]) -> list[Done]:
    """Raises ColoError, with nothing changed, if the VM that was named runs here."""
    files = vms.files(args.directory) if args.all else [args.config]
    if not args.all:
        forgetting.require_unused(load_config(args.config))
    names = ", ".join(map(vms.name_of, files)) or "no VM"
    confirm(
        args,
        f"Take away what colo-ebpf made on this host for {names}? Images, configuration and record "
        "stay.",
    )
    return [_forget(file, args) for file in files]


def _forget(file: Path, args: argparse.Namespace) -> Done:
    name = vms.name_of(file)
    try:
        config = load_config(file)
        removed = forgetting.forget(config, _record(config), keep_notes=args.keep_notes)
    except ColoError as e:
        if not args.all:
            raise
        return Done(name, why=str(e))
    return Done(name, tuple(removed), left=tuple(forgetting.left(config)))


def _record(config: Config) -> Record | None:
    """The arbiter's; None if it cannot be asked."""
    try:
        return asyncio.run(arbiter_of(config).read())
    except ColoError:
        return None


def readable(done: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = []
    for one in done:
        lines += [f"{one['vm']}: removed {what}" for what in one["removed"]]
        if one["why"]:
            lines.append(f"{one['vm']}: left as it is: {one['why']}")
        elif not one["removed"]:
            lines.append(f"{one['vm']}: there was nothing")
        lines += [f"{one['vm']}: {sentence}" for sentence in one["left"]]
    return "\n".join(lines)
