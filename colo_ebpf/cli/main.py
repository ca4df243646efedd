# SPDX-License-Identifier: GPL-2.0-only
"""The command `colo-ebpf`: the parser, and each verb's few lines.

Exit codes: 0 done, 1 a check failed, 2 an error (one line on stderr says what and what to do).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colo_ebpf import config as configuration
from colo_ebpf.cli import planned, text
from colo_ebpf.control import ctl
from colo_ebpf.control.record import Record
from colo_ebpf.control.unfinished import Unfinished
from colo_ebpf.errors import ColoError, ControlError

if TYPE_CHECKING:
    from colo_ebpf.control.arbiters import OperatedArbiter

DEFAULT_CONFIG = Path(os.environ.get("COLO_EBPF_CONFIG", "/etc/colo-ebpf/config.toml"))
Verb = Callable[[argparse.Namespace], int]


def _show(args: argparse.Namespace, value: Any, readable: Callable[[Any], str]) -> None:
    print(json.dumps(value, indent=2) if args.json else readable(value))


def confirm(args: argparse.Namespace, question: str) -> None:
    """Ask before something dangerous; ControlError unless the answer is yes."""
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise ControlError(f"{question} Not a terminal: say --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ControlError("not done")


def _socket(args: argparse.Namespace) -> Path:
    return Path(configuration.load(args.config).host.run_dir) / "ctl.sock"


# --- verbs ------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from colo_ebpf.control.daemon import serve

    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s.%(msecs)03d "
    logging.basicConfig(
        level=logging.INFO, format=f"{stamp}%(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    config = configuration.load(args.config)
    configuration.check_paths(config, args.config)
    serve(config)
    return 0


def _status(args: argparse.Namespace) -> int:
    _show(args, ctl.ask(_socket(args), "status"), text.status)
    return 0


def _counters(args: argparse.Namespace) -> int:
    _show(args, ctl.ask(_socket(args), "status")["packets"], text.packets)
    return 0


def _mismatches(args: argparse.Namespace) -> int:
    _show(args, ctl.ask(_socket(args), "mismatches"), text.mismatches)
    return 0


def _pins(args: argparse.Namespace) -> Path:
    from colo_ebpf.datapath.loader import pin_directory

    config = configuration.load(args.config)
    return pin_directory(Path(config.host.bpffs), config.vm.name)


def _flows(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath import inspect

    _show(args, inspect.flows(_pins(args)), text.flows)
    return 0


def _held(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath import inspect

    _show(args, inspect.held(_pins(args)), text.held)
    return 0


def _capture(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath import capture

    config = configuration.load(args.config)
    store = capture.HoldStore(_pins(args))
    if args.file.exists():
        confirm(args, f"Overwrite {args.file}?")
    count = 0
    try:
        with args.file.open("wb") as stream:
            writer = capture.Writer(stream, config.vm.name)
            for frame in capture.follow(store, args.seconds):
                writer.write(frame)
                count += 1
                if not args.json and args.seconds and sys.stderr.isatty():
                    print(f"\r{count} frames", end="", file=sys.stderr, flush=True)
    except OSError as e:
        raise ControlError(f"{args.file}: {e.strerror}") from e
    finally:
        store.close()
    said = {"file": str(args.file), "frames": count}
    _show(args, said, lambda s: f"{s['file']}: {s['frames']} held frames")
    return 0


def _checkpoint(args: argparse.Namespace) -> int:
    _show(args, ctl.ask(_socket(args), "checkpoint"), lambda _: "asked for a checkpoint")
    return 0


def _switchover(args: argparse.Namespace) -> int:
    socket = _socket(args)
    confirm(args, "Let the secondary of the pair take over, and the primary become the secondary?")
    _show(args, planned.carry_out(socket, "switchover", args.json), planned.readable)
    return 0


def _start(args: argparse.Namespace) -> int:
    answer = planned.carry_out(_socket(args), "start", args.json)
    _show(args, answer, planned.readable)
    return 0


def _pause(args: argparse.Namespace) -> int:
    _show(args, planned.pause(_socket(args), "pause"), planned.readable_pause)
    return 0


def _resume(args: argparse.Namespace) -> int:
    _show(args, planned.pause(_socket(args), "resume"), planned.readable_pause)
    return 0


def _failover(args: argparse.Namespace) -> int:
    socket = _socket(args)
    confirm(args, ctl.ask(socket, "may-fail-over", generation=args.generation)["question"])
    answer = planned.carry_out(socket, "failover", args.json, generation=args.generation)
    _show(args, answer, planned.readable)
    return 0


def _history(args: argparse.Namespace) -> int:
    now_s = time.time()
    _show(args, ctl.ask(_socket(args), "history"), lambda rows: text.history(rows, now_s))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import verify

    config = configuration.load(args.config)
    found = verify.verify(config, args.differences, quiet=args.json)
    _show(args, found, verify.readable)
    return 0 if found["equal"] else 1


def _doctor(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import doctor

    config = configuration.load(args.config) if args.config.exists() else None
    findings = []
    for one in doctor.examine(config):
        findings.append(one)
        if not args.json:
            print(doctor.readable(one), flush=True)
    if args.json:
        print(json.dumps([one.plain() for one in findings], indent=2))
    return 0 if all(one.ok for one in findings) else 1


def _config_check(args: argparse.Namespace) -> int:
    config = configuration.load(args.file)
    configuration.check_paths(config, args.file)
    _show(args, {"file": str(args.file), "ok": True}, lambda _: f"{args.file}: in order")
    return 0


def _config_example(_args: argparse.Namespace) -> int:
    print(configuration.EXAMPLE, end="")
    return 0


def _arbiter_init(args: argparse.Namespace) -> int:
    config = configuration.load(args.config)
    name = config.host.name
    Unfinished(Path(config.host.state_dir)).check()
    confirm(args, f"Write the first record: {name} may start {config.vm.name} from its image?")
    return _show_record(args, asyncio.run(_arbiter(config).init(name)))


def _arbiter_show(args: argparse.Namespace) -> int:
    return _show_record(args, asyncio.run(_arbiter(configuration.load(args.config)).read()))


def _show_record(args: argparse.Namespace, record: Record) -> int:
    plain = {"generation": record.generation, "text": record.describe()}
    _show(args, plain, lambda p: f"generation {p['generation']}: {p['text']}")
    return 0


def _arbiter(config: configuration.Config) -> OperatedArbiter:
    from colo_ebpf.control.arbiters import arbiter_of

    return arbiter_of(config)


# --- parser -----------------------------------------------------------------------------


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="machine-readable output")
    common.add_argument("--yes", action="store_true", help="do not ask")
    return common


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def parser(*, daemon: bool = False) -> argparse.ArgumentParser:
    """The whole command line; for a daemon, whose start counts, without lab and benchmarks."""
    top = argparse.ArgumentParser(
        prog="colo-ebpf",
        description="Keep a virtual machine serving through the death of its host.",
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")
    common = _common()
    located = argparse.ArgumentParser(add_help=False, parents=[common])
    located.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    for name, verb, summary in (
        ("run", _run, "the daemon of one VM on this host"),
        ("status", _status, "what the daemon does and why"),
        ("history", _history, "what the daemon said lately, and when"),
        ("start", _start, "start a VM that its guest powered off (on the host with its image)"),
        ("pause", _pause, "keep the VM on the host where it serves, whatever happens"),
        ("resume", _resume, "end a pause"),
        ("switchover", _switchover, "let the two hosts change places (on either of them)"),
        ("checkpoint", _checkpoint, "take a checkpoint now (on the primary)"),
        ("counters", _counters, "packets by program, verdict and reason"),
        ("mismatches", _mismatches, "the last places where the two VMs differed"),
        ("flows", _flows, "TCP connections: verified how far, what is held (needs no daemon)"),
        ("held", _held, "the frames that are held now (needs no daemon)"),
        ("doctor", _doctor, "what this host lacks, and what to do"),
    ):
        verbs.add_parser(name, parents=[located], help=summary).set_defaults(verb=verb)
    capture = verbs.add_parser(
        "capture", parents=[located], help="held frames as a pcapng file (needs no daemon)"
    )
    capture.add_argument("file", type=Path, metavar="FILE")
    capture.add_argument(
        "--seconds", type=float, default=0.0, help="go on looking for so long (default: one look)"
    )
    capture.set_defaults(verb=_capture)
    verify = verbs.add_parser(
        "verify", parents=[located], help="compare the pair's images byte for byte (on the primary)"
    )
    verify.add_argument(
        "--differences",
        type=_positive,
        default=20,
        metavar="N",
        help="tell at most so many per disk",
    )
    verify.set_defaults(verb=_verify)
    failover = verbs.add_parser(
        "failover", parents=[located], help="let the VM here serve alone, against the daemon's will"
    )
    failover.add_argument("--force", action="store_true", required=True)
    failover.add_argument(
        "--generation",
        type=_positive,
        required=True,
        metavar="N",
        help="of the record that is overridden (`arbiter show` prints it)",
    )
    failover.set_defaults(verb=_failover)
    _config_verbs(verbs, common)
    arbiter = verbs.add_parser("arbiter", help="the record of who may speak for the VM")
    records = arbiter.add_subparsers(required=True, metavar="VERB")
    for name, verb, summary in (
        ("init", _arbiter_init, "write the first record: this host starts the VM"),
        ("show", _arbiter_show, "print the record"),
    ):
        records.add_parser(name, parents=[located], help=summary).set_defaults(verb=verb)
    if not daemon:
        _tool_verbs(verbs, common)
    return top


def _tool_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    from colo_ebpf.cli import bench, lab

    lab.add_verbs(verbs, common)
    bench.add_verb(verbs, common)


def _config_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    group = verbs.add_parser("config", help="the configuration file")
    inner = group.add_subparsers(required=True, metavar="VERB")
    check = inner.add_parser("check", parents=[common], help="check a file")
    check.add_argument("file", type=Path)
    check.set_defaults(verb=_config_check)
    inner.add_parser("example", help="print an example").set_defaults(verb=_config_example)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(daemon=words[:1] == ["run"]).parse_args(words)
    try:
        return int(args.verb(args))
    except ColoError as e:
        print(f"colo-ebpf: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        print("colo-ebpf: interrupted", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    return 2


if __name__ == "__main__":
    sys.exit(main())
