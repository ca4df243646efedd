# SPDX-License-Identifier: GPL-2.0-only
"""The command `colo-ebpf`: its entry point.

A verb that fails says in one line on stderr what failed and what to do; exit codes: `exits`.
"""

from __future__ import annotations

import os
import sys

from colo_ebpf.cli import vms
from colo_ebpf.cli.exits import Exit, code_of
from colo_ebpf.cli.parser import parser
from colo_ebpf.errors import ColoError


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(words).parse_args(words)
    try:
        if "config" in args and not getattr(args, "all", False):  # a verb for one VM
            args.config = vms.locate(args.config, args.vm, vms.DIRECTORY)
        return int(args.verb(args))
    except ColoError as e:
        print(f"{_priority()}colo-ebpf: {e}", file=sys.stderr)
        return code_of(e)
    except KeyboardInterrupt:
        print("colo-ebpf: interrupted", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    return Exit.REFUSED


def _priority() -> str:
    """Of an error, for the journal, as sd-daemon(3) has it; "" for people."""
    if "JOURNAL_STREAM" not in os.environ:
        return ""
    import logging

    from colo_ebpf.control.host import journal

    to_journal = journal.is_journal(sys.stderr.fileno(), os.environ)
    return f"<{journal.priority(logging.ERROR)}>" if to_journal else ""


if __name__ == "__main__":
    sys.exit(main())
