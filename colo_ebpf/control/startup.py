# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf run`: what has to be so before a daemon serves, in the order in which it is made so.

QEMU's starter comes first, while this process has one thread and all its privileges. Then one
daemon per run directory, what the configuration names, the data plane; then the privileges go.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path
from typing import IO

from colo_ebpf.config.schema import Config
from colo_ebpf.control import link_security, settings
from colo_ebpf.control.daemon import Daemon
from colo_ebpf.control.host.capabilities import keep_only_needed
from colo_ebpf.control.host.systemd import Notifier
from colo_ebpf.control.loop import BeatSelector, loop_of
from colo_ebpf.control.qemu import accel, vhost
from colo_ebpf.control.qemu.own_compatibility import compatibility_of
from colo_ebpf.control.qemu.process import QemuMachine
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.control.state import atomic
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.directories import make_passable
from colo_ebpf.errors import ControlError
from colo_ebpf.storage import overlay

_log = logging.getLogger(__name__)
_LOADING_S = 600  # to compile and verify, on a host that is slow or busy: more than a unit allows


def lock(run_dir: Path) -> IO[str]:
    """One daemon per run directory, for as long as the file stays open."""
    path = run_dir / "daemon.lock"
    try:
        make_passable(run_dir)
        file = path.open("a+")
    except OSError as e:
        raise ControlError(f"cannot open {path}: {e.strerror}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ControlError(
            f"{path}: a daemon runs already here (pid {holder}): stop it first, or give this one "
            "another host.run-dir"
        ) from e
    _say_who(file, path)
    return file


def _say_who(file: IO[str], path: Path) -> None:
    """For the sentence that a second daemon ends with; the lock holds without it."""
    try:
        with atomic.noted(path):
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
    except OSError as e:
        _log.warning("cannot write %s: %s", path, e.strerror)


def _realtime(priority: int) -> None:
    """Ahead of what else the host runs; children (QEMU) start without it."""
    if not priority:
        return
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        _log.warning("no real-time priority (CAP_SYS_NICE): failures are noticed less exactly")


def _make_state_dir(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ControlError(f"host.state-dir: cannot make {directory}: {e.strerror}") from e


def serve(config: Config) -> None:
    """Everything `colo-ebpf run` does. Raises ColoError."""
    starter = Starter.begin(settings.qemu_user(config))
    try:
        _serve_with(config, starter)
    finally:
        starter.close()


def _serve_with(config: Config, starter: Starter) -> None:
    settings.key_ring(config)
    held = lock(Path(config.host.run_dir))
    try:
        _make_state_dir(Path(config.host.state_dir))
        settings.watchdog(config).check()
        for disk in config.vm.disk:
            if not disk.readonly:
                overlay.claim(Path(disk.overlay_dir), config.vm.name)
        if any(nic.vhost for nic in config.vm.nic):
            vhost.require()
        os.umask(0o077)
        ends, through = settings.link_ends(config), settings.through(config)
        security = link_security.choose(config.link.security, ends, through)
        plane = _load(config, starter, security)
        keep_only_needed()
        _realtime(config.start.realtime_priority)
        _serve(config, plane, starter, security)
    finally:
        held.close()


def _load(config: Config, starter: Starter, security: Security) -> DataPlane:
    """The unit's own limit is for a start that hangs: this part may compile and verify."""
    what = f"loading the data plane of {config.vm.name}"
    _log.info(what)
    Notifier().say(STATUS=what, EXTEND_TIMEOUT_USEC=_LOADING_S * 1_000_000)
    return DataPlane.open(settings.plane_spec(config, starter.user, security=security))


def _serve(config: Config, plane: DataPlane, starter: Starter, security: Security) -> None:
    selector = BeatSelector()

    async def run() -> None:
        vm, cache_dir = config.vm, Path(config.host.cache_dir)
        chosen, why = await accel.choose(vm.accel, vm.qemu, vm.kernel, cache_dir)
        _log.info("accelerator: %s (%s)", chosen, why)
        machine = QemuMachine(settings.vm_spec(config, chosen, security), starter)
        own = await compatibility_of(config, chosen) | link_security.compatibility(security)
        daemon = Daemon(config, plane, machine, why, selector, compatibility=own, security=security)
        await daemon.run()

    with asyncio.Runner(loop_factory=lambda: loop_of(selector)) as runner:
        runner.run(run())
