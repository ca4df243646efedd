# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf import-libvirt` and `import-proxmox`: a configuration from another hypervisor's VM.

Nothing of the VM is touched. A file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.cli.exits import Exit
from colo_ebpf.config.reading import shared_with
from colo_ebpf.convert import configuration
from colo_ebpf.convert.imported import MOST_BYTES, Imported, Weight
from colo_ebpf.errors import ConfigError, VmError

Confirm = Callable[[argparse.Namespace, str], None]
Release = tuple[int, int] | None
_QEMU = "qemu-system-x86_64"
_WAIT_S = 60.0


def run(args: argparse.Namespace, confirm: Confirm) -> int:
    """Exit code 1: the guest loses something."""
    read = {"libvirt": _libvirt, "proxmox": _proxmox}[args.of_whom]
    try:
        found = read(args.source, _release())
        file = args.output or Path(f"{found.vm.name}.toml")
        written = configuration.text(found.vm, file, shared_with(file))
    except ConfigError as e:
        raise ConfigError(f"{args.source}: {e}") from e
    if args.output is not None:
        _write(args, written, confirm)
    elif not args.json:
        print(written, end="")
    _tell(args, found, written)
    lost = any(one.weight is Weight.CANNOT for one in found.remarks)
    return Exit.FAILED if lost else Exit.DONE


def _write(args: argparse.Namespace, written: str, confirm: Confirm) -> None:
    from colo_ebpf.control.state import atomic

    if args.output.exists():
        confirm(args, f"Overwrite {args.output}?")
    atomic.write(args.output, written.encode())


def _tell(args: argparse.Namespace, found: Imported, written: str) -> None:
    if args.json:
        plain = [
            {"weight": one.weight.value, "what": one.what, "text": one.text}
            for one in found.remarks
        ]
        file = args.output and str(args.output)
        said = {"vm": found.vm.name, "file": file, "remarks": plain, "configuration": written}
        print(json.dumps(said, indent=2))
        return
    for one in found.remarks:
        print(one.line(), file=sys.stderr)
    if args.output is not None:
        print(f"{args.output}: {written.partition(chr(10))[0][2:]}", file=sys.stderr)


def _release() -> Release:
    """Of this host's QEMU, if there is one."""
    from colo_ebpf.control.qemu import support

    try:
        return asyncio.run(support.release_of(_QEMU))
    except VmError:
        return None


# --- where it comes from ----------------------------------------------------------------


def _libvirt(source: str, release: Release) -> Imported:
    from colo_ebpf.convert import domain, strict_xml

    if "/" in source or source.endswith(".xml"):
        data = _file(Path(source))
    else:
        virsh = _virsh()
        words = [virsh[0], "--readonly", *virsh[1:], "dumpxml", f"--domain={source}"]
        data = _printed(words, [*virsh, "list", "--all"])
    return domain.imported_from(strict_xml.element(data), release)


def _virsh() -> list[str]:
    """At the libvirt that the environment names, as with any virsh; else at the host's QEMU."""
    named = any(os.environ.get(one) for one in ("VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"))
    return ["virsh"] if named else ["virsh", "--connect", "qemu:///system"]


def _proxmox(source: str, release: Release) -> Imported:
    from colo_ebpf.convert import proxmox

    configured = b""
    if re.fullmatch(r"[1-9][0-9]{0,8}", source):
        command = _printed(["qm", "showcmd", source], ["qm", "list"])
        configured = _printed(["qm", "config", source], ["qm", "list"])
    else:
        command = _file(Path(source))
    try:
        return proxmox.imported_from(command.decode(), configured.decode(), release)
    except UnicodeDecodeError as e:
        raise ConfigError("not UTF-8 text") from e


def _file(path: Path) -> bytes:
    """ConfigError if it cannot be read; no more than may be read."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as e:
        raise ConfigError(e.strerror or "cannot be read") from e


def _printed(words: list[str], listing: list[str]) -> bytes:
    """What a command prints; ConfigError if it fails. `listing`: what shows all VMs."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            timeout=_WAIT_S,
            check=False,
        )
    except FileNotFoundError as e:
        raise ConfigError(f"{words[0]} is not installed here: name a file with its output") from e
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"{words[0]} failed: {e}") from e
    if done.returncode:
        said = _joined(done.stderr) or f"exit code {done.returncode}"
        text = f"{words[0]} failed: {said}; `{' '.join(listing)}` shows what is there"
        raise ConfigError(text)
    return done.stdout


def _joined(said: bytes) -> str:
    """Lines of a command's errors as one."""
    lines = (line.strip() for line in said.decode(errors="replace").splitlines())
    return ": ".join(line.removeprefix("error: ") for line in lines if line)[-300:]
