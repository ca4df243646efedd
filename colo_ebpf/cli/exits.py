# SPDX-License-Identifier: GPL-2.0-only
"""The exit codes of `colo-ebpf`. `check` has those of monitors instead: see `health`."""

from __future__ import annotations

import enum

from colo_ebpf.errors import ColoError, NoDaemonError, NotInstalledError, NotInTimeError


class Exit(enum.IntEnum):
    """What a script can tell apart."""

    DONE = 0
    FAILED = 1  # a check: the answer is no
    REFUSED = 2  # wrong usage, wrong configuration, or it cannot be done as things are
    NO_DAEMON = 3
    LATE = 4  # not done in time; it may be done yet
    NOT_INSTALLED = 5  # also systemd's number for it: see the units


def code_of(error: ColoError) -> Exit:
    """What a command ends with that failed so."""
    if isinstance(error, NoDaemonError):
        return Exit.NO_DAEMON
    if isinstance(error, NotInstalledError):
        return Exit.NOT_INSTALLED
    return Exit.LATE if isinstance(error, NotInTimeError) else Exit.REFUSED
