# SPDX-License-Identifier: GPL-2.0-only
"""The command line: every verb, its options and its help."""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from colo_ebpf import __version__
from colo_ebpf.cli import verbs, vms
from colo_ebpf.errors import ControlError

_TOOLS = ("lab", "bench")  # Debian has them in a package of their own


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="machine-readable output")
    common.add_argument("--yes", action="store_true", help="do not ask")
    return common


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def _hours(text: str) -> float:
    if not 0 < (value := float(text)) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: above 0, at most 100000")
    return value


def _length_s(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise argparse.ArgumentTypeError(f"{text}: a number and s, m, h or d, as 30m")
    if not int(number):
        raise argparse.ArgumentTypeError(f"{text}: longer than nothing")
    return int(number) * units[unit]


def _seconds(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text}: not negative")
    return value


def parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The whole command line; for `words` without lab and benchmarks if they name another verb."""
    top = argparse.ArgumentParser(
        prog="colo-ebpf",
        description="Keep a virtual machine serving through the death of its host.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage or refused, 3 no daemon, "
        "4 not done in time.",
    )
    top.add_argument("--version", action="version", version=f"colo-ebpf {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="VERB")
    common = _common()
    located = argparse.ArgumentParser(add_help=False, parents=[common])
    located.add_argument(
        "vm", nargs="?", metavar="VM", help="the VM's name; needed if this host has several"
    )
    located.add_argument(
        "--config", type=Path, metavar="FILE", help="the VM's configuration, instead of its name"
    )
    for name, verb, summary in (
        ("run", verbs.do_run, "the daemon of one VM on this host"),
        ("status", verbs.do_status, "what the daemon does and why"),
        (
            "check",
            verbs.do_check,
            "one line for a monitor; exits 0 to 3: OK, WARNING, CRITICAL, UNKNOWN",
        ),
        ("paths", verbs.do_paths, "where everything of the VM is on this host"),
        ("counters", verbs.do_counters, "packets by program, verdict and reason"),
        ("mismatches", verbs.do_mismatches, "the last places where the two VMs differed"),
        (
            "flows",
            verbs.do_flows,
            "TCP connections: verified how far, what is held (needs no daemon)",
        ),
        ("held", verbs.do_held, "the frames that are held now (needs no daemon)"),
        ("doctor", verbs.do_doctor, "what this host lacks, and what to do"),
    ):
        subparsers.add_parser(name, parents=[located], help=summary).set_defaults(verb=verb)
    _views(subparsers, common, located)
    awaited = argparse.ArgumentParser(add_help=False, parents=[located])
    awaited.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="wait no longer for the outcome (default: %(default)g; 0: without end)",
    )
    for name, verb, summary in (
        (
            "start",
            verbs.do_start,
            "start a VM that its guest powered off (on the host with its image)",
        ),
        ("resume", verbs.do_resume, "end a pause"),
        ("switchover", verbs.do_switchover, "let the two hosts change places (on either of them)"),
        ("checkpoint", verbs.do_checkpoint, "take a checkpoint now (on the primary)"),
    ):
        subparsers.add_parser(name, parents=[awaited], help=summary).set_defaults(verb=verb)
    _pause_verbs(subparsers, common, awaited)
    capture = subparsers.add_parser(
        "capture", parents=[located], help="held frames as a pcapng file (needs no daemon)"
    )
    capture.add_argument("file", type=Path, metavar="FILE", help="the pcapng file")
    capture.add_argument(
        "--seconds", type=float, default=0.0, help="look for so long (default: once)"
    )
    capture.set_defaults(verb=verbs.do_capture)
    verify = subparsers.add_parser(
        "verify", parents=[located], help="compare the pair's disks byte for byte (on the primary)"
    )
    verify.add_argument(
        "--differences",
        type=_positive,
        default=20,
        metavar="N",
        help="print at most so many differences per disk",
    )
    verify.add_argument(
        "--sample-mib",
        type=_positive,
        default=16,
        metavar="N",
        help="of a disk that both hosts share read so much, at random places",
    )
    verify.set_defaults(verb=verbs.do_verify)
    failover = subparsers.add_parser(
        "failover", parents=[awaited], help="let the VM here serve alone, against the daemon's will"
    )
    failover.add_argument("--force", action="store_true", required=True, help="required")
    _of_generation(failover)
    failover.set_defaults(verb=verbs.do_failover)
    _forget_verb(subparsers, located)
    _config_verbs(subparsers, common)
    _import_verbs(subparsers, common)
    _key_verbs(subparsers, located)
    arbiter = subparsers.add_parser("arbiter", help="the record of who may speak for the VM")
    records = arbiter.add_subparsers(required=True, metavar="VERB")
    for name, verb, summary in (
        ("init", verbs.do_arbiter_init, "write the first record: this host starts the VM"),
        ("show", verbs.do_arbiter_show, "print the record"),
    ):
        records.add_parser(name, parents=[located], help=summary).set_defaults(verb=verb)
    replaced = records.add_parser(
        "replace",
        parents=[located],
        help="write another record: this host starts the VM, whatever the one before says",
    )
    _of_generation(replaced)
    replaced.set_defaults(verb=verbs.do_arbiter_replace)
    if words is None or _wants_tools(words, subparsers.choices):
        _tool_verbs(subparsers, common)
    return top


def _of_generation(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--generation",
        type=_positive,
        required=True,
        metavar="N",
        help="generation of the record to override (`arbiter show` prints it)",
    )


def _of_directory(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--directory",
        type=Path,
        default=vms.DIRECTORY,
        metavar="DIR",
        help="directory of vms/*.toml and config.toml (default: %(default)s)",
    )


def _views(
    subparsers: Any, common: argparse.ArgumentParser, located: argparse.ArgumentParser
) -> None:
    listed = subparsers.add_parser(
        "list", parents=[common], help="all VMs of this host, a line each"
    )
    listed.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="repeat every so many seconds (default: %(const)g)",
    )
    _of_directory(listed)
    listed.set_defaults(verb=verbs.do_list)
    past = subparsers.add_parser(
        "history", parents=[located], help="each change of state: when, why, by whom, how silent"
    )
    either = past.add_mutually_exclusive_group()
    either.add_argument("--follow", "-f", action="store_true", help="and those that come")
    either.add_argument("--sentences", action="store_true", help="what the daemon said lately")
    past.set_defaults(verb=verbs.do_history)
    page = subparsers.add_parser(
        "report", parents=[located], help="a page of HTML: what happened, and when"
    )
    span = page.add_mutually_exclusive_group()
    span.add_argument(
        "--hours",
        type=_hours,
        default=6.0,
        metavar="N",
        help="the last ones (default: %(default)g; of more than 12 changes of state alone)",
    )
    span.add_argument(
        "--failover",
        type=_positive,
        nargs="?",
        const=1,
        metavar="N",
        help="two minutes around one; 1, or nothing: the newest",
    )
    page.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: NAME-report.html")
    page.set_defaults(verb=verbs.do_report)
    logs = subparsers.add_parser(
        "logs", parents=[located], help="log of the daemon, of QEMU or of the guest"
    )
    which = logs.add_mutually_exclusive_group()
    for what, summary in (("qemu", "what QEMU printed"), ("guest", "the guest's serial console")):
        which.add_argument(f"--{what}", dest="what", action="store_const", const=what, help=summary)
    logs.add_argument(
        "--lines", "-n", type=_positive, default=50, metavar="N", help="lines to print"
    )
    logs.add_argument("--follow", "-f", action="store_true", help="go on with what is added")
    logs.set_defaults(verb=verbs.do_logs)


def _wants_tools(words: Sequence[str], known: Container[str]) -> bool:
    """For what names none of the verbs here: it is one of those, or gets all of them to see."""
    return words[:1] != ["--version"] and not (words and words[0] in known)


def _tool_verbs(subparsers: Any, common: argparse.ArgumentParser) -> None:
    import importlib.util

    from colo_ebpf.cli import metrics

    metrics.add_verb(subparsers)
    if importlib.util.find_spec("colo_ebpf.lab") is None:
        for name in _TOOLS:  # whatever follows, options too
            one = subparsers.add_parser(name, add_help=False, prefix_chars="\0")
            one.add_argument("words", nargs=argparse.REMAINDER)
            one.set_defaults(verb=_no_tools)
        return
    from colo_ebpf.cli import bench, lab

    lab.add_verbs(subparsers, common)
    bench.add_verb(subparsers, common)


def _no_tools(_args: argparse.Namespace) -> int:
    raise ControlError("this is in the package colo-ebpf-lab, which is not installed")


def _pause_verbs(
    subparsers: Any, common: argparse.ArgumentParser, awaited: argparse.ArgumentParser
) -> None:
    pause = subparsers.add_parser(
        "pause", parents=[awaited], help="keep the VM on the host where it serves, whatever happens"
    )
    pause.add_argument(
        "--for",
        dest="length_s",
        type=_length_s,
        default=0,
        metavar="TIME",
        help="no longer than this, as 90s, 30m, 4h or 2d (default: until `resume`)",
    )
    pause.add_argument("--why", default="", metavar="TEXT", help="shown to whoever looks")
    pause.set_defaults(verb=verbs.do_pause)
    drain = subparsers.add_parser(
        "drain", parents=[common], help="empty this host: its VMs serve on their other hosts"
    )
    drain.add_argument("--undo", action="store_true", help="protect them again")
    drain.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="wait no longer for each VM (default: %(default)g; 0: without end)",
    )
    _of_directory(drain)
    drain.set_defaults(verb=verbs.do_drain)


def _forget_verb(subparsers: Any, located: argparse.ArgumentParser) -> None:
    forget = subparsers.add_parser(
        "forget",
        parents=[located],
        help="take away what the daemon made on this host: devices, rules, maps, notes",
    )
    forget.add_argument("--all", action="store_true", help="of all VMs that do not run here")
    forget.add_argument(
        "--keep-notes", action="store_true", help="but for the history, and what a start goes by"
    )
    _of_directory(forget)
    forget.set_defaults(verb=verbs.do_forget)


def _import_verbs(subparsers: Any, common: argparse.ArgumentParser) -> None:
    for name, source, of_whom in (
        ("import-libvirt", "NAME|FILE.xml", "a domain (`virsh dumpxml`)"),
        ("import-proxmox", "VMID|FILE", "a VM of Proxmox (`qm showcmd`)"),
    ):
        one = subparsers.add_parser(name, parents=[common], help=f"a configuration from {of_whom}")
        one.add_argument("source", metavar=source, help="which, or a file with what that prints")
        one.add_argument("--output", "-o", type=Path, metavar="FILE", help="write it there")
        one.set_defaults(verb=verbs.do_import, of_whom=name.removeprefix("import-"))


def _config_verbs(subparsers: Any, common: argparse.ArgumentParser) -> None:
    group = subparsers.add_parser("config", help="the configuration file")
    inner = group.add_subparsers(required=True, metavar="VERB")
    check = inner.add_parser("check", parents=[common], help="check a file")
    check.add_argument("file", type=Path, help="the configuration")
    check.set_defaults(verb=verbs.do_config_check)
    example = inner.add_parser("example", help="print an example")
    example.add_argument("--host", action="store_true", help="of what all VMs of a host share")
    example.set_defaults(verb=verbs.do_config_example)


def _key_verbs(subparsers: Any, located: argparse.ArgumentParser) -> None:
    group = subparsers.add_parser("key", help="the key that the two hosts share")
    inner = group.add_subparsers(required=True, metavar="VERB")
    rotate = inner.add_parser(
        "rotate",
        parents=[located],
        help="the next step to another key, while the VMs stay protected; says what follows",
    )
    rotate.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="take the new key, made on the other host, from a file (-: from standard input)",
    )
    rotate.set_defaults(verb=verbs.do_key_rotate)
