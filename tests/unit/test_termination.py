# SPDX-License-Identifier: GPL-2.0-only
"""A command that is told to end takes down what it has made."""

from __future__ import annotations

import signal
import subprocess
import sys

_COMMAND = """
import signal
from colo_ebpf.cli.termination import taken_down_first

with taken_down_first():
    try:
        print("made", flush=True)
        signal.pause()
    except Exception:
        print("taken for an error", flush=True)
    finally:
        signal.raise_signal(signal.SIGTERM)  # told again
        print("taken down", flush=True)
"""


def test_what_it_made_is_taken_down_and_the_signal_ends_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "made\n"
        command.terminate()
        said, _ = command.communicate(timeout=60)
    assert (said, command.returncode) == ("taken down\n", -signal.SIGTERM)
