# SPDX-License-Identifier: GPL-2.0-only
"""What each verb of `colo-ebpf` does, in a few lines: ask, show, exit code.

Verbs that only ask the daemon answer at once: what is slow to load is imported by who needs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colo_ebpf import shared
from colo_ebpf.cli import planned, text, vms
from colo_ebpf.cli.exits import Exit, code_of
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import check_paths, load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.errors import ColoError, ConfigError, ControlError

if TYPE_CHECKING:
    from colo_ebpf.control.arbiter.factory import OperatedArbiter
    from colo_ebpf.control.decision.record import Record


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
    return vms.socket_of(load_config(args.config))


def do_run(args: argparse.Namespace) -> int:
    import logging

    from colo_ebpf.control.host import journal
    from colo_ebpf.control.startup import serve

    config = load_config(args.config)
    to_journal = journal.begin(COLO_VM=config.vm.name, COLO_HOST=config.host.name)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    try:
        check_paths(config, args.config)
        serve(config)
    except ColoError as e:
        if not to_journal:
            raise
        logging.getLogger(__name__).error("%s", e)
        return code_of(e)
    return 0


def do_status(args: argparse.Namespace) -> int:
    _show(args, control_socket.ask(_socket(args), "status"), text.status)
    return 0


def do_check(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import health

    try:
        verdict = health.judge(control_socket.ask(_socket(args), "status"))
    except ColoError as e:
        verdict = health.Verdict(health.Level.UNKNOWN, "", health.one_line(str(e)))
    _show(args, verdict.plain(), lambda _: verdict.text())
    return verdict.level


def do_list(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import listing, look

    if args.watch is not None:
        return look.watch(args.directory, args.watch, args.json)
    rows = look.rows(args.directory)
    _show(args, [one.plain() for one in rows], lambda _: listing.readable(rows))
    return 0


def do_paths(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import paths

    found = paths.paths(load_config(args.config), args.config)
    _show(args, found, paths.readable)
    return 0


def do_logs(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import logs, paths

    if args.what is None:
        return logs.of_unit(vms.unit_of(args.config), args.lines, args.follow, args.json)
    run_dir = Path(load_config(args.config).host.run_dir)
    name = {"qemu": paths.QEMU_LOG, "guest": paths.GUEST_LOG}[args.what]
    return logs.of_file(run_dir / name, args.lines, args.follow, args.json)


def do_counters(args: argparse.Namespace) -> int:
    _show(args, control_socket.ask(_socket(args), "status")["packets"], text.packets)
    return 0


def do_mismatches(args: argparse.Namespace) -> int:
    _show(args, control_socket.ask(_socket(args), "mismatches"), text.mismatches)
    return 0


def _pins(args: argparse.Namespace) -> Path:
    from colo_ebpf.datapath.bpf.loader import pin_directory

    config = load_config(args.config)
    return pin_directory(Path(config.host.bpffs), config.vm.name)


def do_flows(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath.maps import dump

    _show(args, dump.flows(_pins(args)), text.flows)
    return 0


def do_held(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath.maps import dump

    _show(args, dump.held(_pins(args)), text.held)
    return 0


def do_capture(args: argparse.Namespace) -> int:
    from colo_ebpf.datapath.maps import pcap

    config = load_config(args.config)
    store = pcap.HoldStore(_pins(args))
    if args.file.exists():
        confirm(args, f"Overwrite {args.file}?")
    count = 0
    try:
        with args.file.open("wb") as stream:
            writer = pcap.Writer(stream, config.vm.name)
            for frame in pcap.follow(store, args.seconds):
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


def do_checkpoint(args: argparse.Namespace) -> int:
    one = planned.checkpoint(_socket(args), args.timeout)
    _show(args, one, planned.readable_checkpoint)
    return 0


def do_switchover(args: argparse.Namespace) -> int:
    socket = _socket(args)
    confirm(args, control_socket.ask(socket, "may-switch-over")["question"])
    answer = planned.carry_out(socket, "switchover", args.json, args.timeout)
    _show(args, answer, planned.readable)
    return 0


def do_start(args: argparse.Namespace) -> int:
    answer = planned.carry_out(_socket(args), "start", args.json, args.timeout)
    _show(args, answer, planned.readable)
    return 0


def do_pause(args: argparse.Namespace) -> int:
    until_s = int(time.time() + args.length_s) if args.length_s else 0
    words = {"until_s": until_s, "why": args.why}
    now = planned.pause(_socket(args), "pause", args.timeout, **words)
    _show(args, now, planned.readable_pause)
    return 0


def do_drain(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import drain

    done = drain.run(args, confirm)
    _show(args, [one.plain() for one in done], drain.readable)
    return Exit.DONE


def do_forget(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import forget

    done = forget.run(args, confirm)
    _show(args, [one.plain() for one in done], forget.readable)
    return Exit.FAILED if any(one.why for one in done) else Exit.DONE


def do_resume(args: argparse.Namespace) -> int:
    now = planned.pause(_socket(args), "resume", args.timeout)
    _show(args, now, planned.readable_pause)
    return 0


def do_failover(args: argparse.Namespace) -> int:
    socket = _socket(args)
    confirm(
        args, control_socket.ask(socket, "may-fail-over", generation=args.generation)["question"]
    )
    answer = planned.carry_out(
        socket, "failover", args.json, args.timeout, generation=args.generation
    )
    _show(args, answer, planned.readable)
    return 0


def do_history(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import history

    if args.sentences:
        now_s = time.time()
        _show(
            args,
            control_socket.ask(_socket(args), "history"),
            lambda rows: text.history(rows, now_s),
        )
        return 0
    state_dir = Path(load_config(args.config).host.state_dir)
    if not args.follow:
        _show(args, history.rows(state_dir), history.readable)
        return 0
    for row in history.follow(state_dir):
        print(json.dumps(row) if args.json else history.readable_line(row), flush=True)
    return 0


def do_report(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import report

    config = load_config(args.config)
    output = args.output or Path(f"{config.vm.name}-report.html")
    if output.exists():
        confirm(args, f"Overwrite {output}?")
    said = report.write(config, output, args.hours, args.failover)
    _show(args, said, report.readable)
    return Exit.DONE


def do_verify(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import verify

    config = load_config(args.config)
    wanted = verify.Wanted(args.differences, args.sample_mib << 20, quiet=args.json)
    found = verify.verify(config, wanted)
    _show(args, found, verify.readable)
    return Exit.DONE if found["equal"] else Exit.FAILED


def do_doctor(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import doctor

    config = load_config(args.config) if args.config.exists() else None
    findings = []
    for one in doctor.examine(config):
        findings.append(one)
        if not args.json:
            print(doctor.readable(one), flush=True)
    if args.json:
        print(json.dumps([one.plain() for one in findings], indent=2))
    return Exit.DONE if all(one.ok for one in findings) else Exit.FAILED


def do_config_check(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import images

    config = load_config(args.file)
    check_paths(config, args.file)
    _check_bridges(config, args.file)
    looked = images.require(config, args.file)
    link = config.link
    tunnel = [link.wireguard_port] if link.security == "wireguard" else []
    found = {
        "file": str(args.file),
        "ok": True,
        "images": looked,
        "link_device": link.device,
        "link_udp": [link.vxlan_port, link.heartbeat_port, *tunnel],
        "link_tcp": [link.nbd_port, link.migration_port],
        "management_udp": [link.heartbeat_port],
    }
    _show(args, found, text.config_check)
    return 0


def _check_bridges(config: Config, file: Path) -> None:
    """One that is not there may be made later; what is no bridge will never be one."""
    from colo_ebpf.datapath.net import bridges, netdev

    for nic in config.vm.nic:
        fault = netdev.exists(nic.bridge) and bridges.not_a_bridge(nic.bridge)
        if fault:
            raise ConfigError(f"{file}: vm.nic.bridge: {fault}")


def do_config_example(args: argparse.Namespace) -> int:
    print(shared.EXAMPLE if args.host else EXAMPLE, end="")
    return 0


def do_import(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import importing

    return importing.run(args, confirm)


def do_key_rotate(args: argparse.Namespace) -> int:
    from colo_ebpf.cli import key

    given = None if args.source is None else key.read(args.source)
    _show(args, key.rotate(args.config, given), key.readable)
    return 0


def do_arbiter_init(args: argparse.Namespace) -> int:
    import asyncio

    from colo_ebpf.control.state.inconsistent import InconsistentImages

    config = load_config(args.config)
    name = config.host.name
    InconsistentImages(Path(config.host.state_dir)).check()
    confirm(args, f"Write the first record: {name} may start {config.vm.name} from its image?")
    return _show_record(args, asyncio.run(_arbiter(config).init(name)))


def do_arbiter_replace(args: argparse.Namespace) -> int:
    import asyncio

    from colo_ebpf.cli import replacement

    config = load_config(args.config)
    old = asyncio.run(replacement.examined(config, _arbiter(config), args.generation))
    confirm(args, replacement.question(config, old))
    return _show_record(args, asyncio.run(replacement.write(config, _arbiter(config), old)))


def do_arbiter_show(args: argparse.Namespace) -> int:
    import asyncio

    return _show_record(args, asyncio.run(_arbiter(load_config(args.config)).read()))


def _show_record(args: argparse.Namespace, record: Record) -> int:
    plain = {"generation": record.generation, "text": record.describe()}
    _show(args, plain, lambda p: f"generation {p['generation']}: {p['text']}")
    return 0


def _arbiter(config: Config) -> OperatedArbiter:
    from colo_ebpf.control.arbiter.factory import arbiter_of

    return arbiter_of(config)
