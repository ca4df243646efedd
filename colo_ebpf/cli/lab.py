# SPDX-License-Identifier: GPL-2.0-only
"""The verbs of `colo-ebpf lab`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from colo_ebpf.cli.termination import taken_down_first
from colo_ebpf.cli.verbs import confirm
from colo_ebpf.errors import LabError
from colo_ebpf.lab import faults, topology
from colo_ebpf.lab.guest import NAMES, Wanted, choose
from colo_ebpf.lab.lab import Lab, commands
from colo_ebpf.lab.scenario import SCENARIOS
from colo_ebpf.render import table

DEFAULT_NAME = "colo"


def _lab(args: argparse.Namespace, family: str = "") -> Lab:
    if os.geteuid():
        raise LabError("the lab needs root: it makes namespaces, links and mounts")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    return Lab(args.name, say, family=family)


def _wanted(args: argparse.Namespace) -> Wanted:
    return Wanted(
        name=args.guest,
        kernel=args.kernel,
        initrd=args.initrd,
        append=args.append,
        memory_mib=args.memory,
        disk=args.disk,
        address=args.guest_address,
        accel=args.accel,
        shared_disk=args.shared_disk,
        luns=tuple(args.luns),
    )


def _print(args: argparse.Namespace, value: Any, text: str) -> int:
    print(json.dumps(value, indent=2) if args.json else text)
    return 0


def readable(lab: Lab, facts: dict[str, Any]) -> str:
    """What runs where, and how to look at it."""
    rows = [("HOST", "NAMESPACE", "DAEMON", "QEMU", "STATE", "WHAT IT SAYS")]
    for host, one in facts["hosts"].items():
        pids = (str(one["daemon_pid"] or "-"), str(one["qemu_pid"] or "-"))
        rows.append((host, one["namespace"], *pids, one["state"] or "-", one["sentence"] or "-"))
    client, arbiter = facts["client"], facts["arbiter"]
    where = arbiter.get("path") or f"{arbiter['endpoint']} in namespace {arbiter['namespace']}"
    lines = [
        table(rows),
        f"client: namespace {client['namespace']}, {client['address']} on {client['device']}; "
        f"the guest is {facts['guest_address']}",
        f"arbiter: {arbiter['kind']}, {where}",
        f"files: {facts['directory']}",
        "to look at it:",
        *(f"  {command}" for command in commands(lab)),
    ]
    return "\n".join(lines)


def _confirm_luns(args: argparse.Namespace) -> None:
    if args.luns:
        confirm(args, f"What is on {args.luns[0]} is lost. Go on?")


def _up(args: argparse.Namespace) -> int:
    _confirm_luns(args)
    lab = _lab(args, args.family)
    with taken_down_first():
        lab.up(choose(_wanted(args)), args.arbiter, args.security)
    facts = lab.describe()
    return _print(args, facts, readable(lab, facts))


def _status(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    facts = lab.describe()
    return _print(args, facts, readable(lab, facts))


def _exec(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    command = [word for word in args.command if word != "--"] or ["sh"]
    enter = ["nsenter", f"--net=/run/netns/{lab.namespace_of(args.host)}"]
    return subprocess.run(
        [*enter, *command], env={**os.environ, **lab.environment_of(args.host)}, check=False
    ).returncode


def _kill(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    pids = faults.kill(lab, args.host, args.what)
    return _print(args, {"killed": pids}, f"host {args.host}: killed {args.what}, pids {pids}")


def _hang(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    pids = faults.hang(lab, args.host, args.what)
    return _print(args, {"stopped": pids}, f"host {args.host}: {args.what} hangs, pids {pids}")


def _cut(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    faults.cut(lab, args.path, args.host)
    where = f" of host {args.host}" if args.host else ""
    return _print(args, {"cut": args.path, "host": args.host}, f"cut: {args.path}{where}")


def _heal(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.require_up()
    lab.heal()
    lab.wait_protected()
    facts = lab.describe()
    return _print(args, facts, readable(lab, facts))


def _down(args: argparse.Namespace) -> int:
    lab = _lab(args)
    lab.down()
    return _print(args, {"down": args.name}, f"lab {args.name}: nothing is left")


def _demo(args: argparse.Namespace) -> int:
    from colo_ebpf.lab.demo import demo

    _confirm_luns(args)
    with taken_down_first():
        report = demo(_lab(args), choose(_wanted(args)), args.fault)
    _print(args, report.plain(), report.text())
    return 0 if report.ok else 1


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """`colo-ebpf lab ...`."""
    group = verbs.add_parser("lab", help="two hosts and a client on this machine, to try it out")
    inner = group.add_subparsers(required=True, metavar="VERB")
    named = argparse.ArgumentParser(add_help=False, parents=[common])
    named.add_argument("--name", default=DEFAULT_NAME, help="the lab's name (default: %(default)s)")
    guest = _guest_options()
    up = inner.add_parser("up", parents=[named, guest], help="build a lab and a pair in it")
    up.add_argument(
        "--arbiter", choices=topology.ARBITERS, default="file", help="where the record is"
    )
    up.add_argument(
        "--family", choices=topology.FAMILIES, default="ipv4", help="kind of the hosts' addresses"
    )
    up.add_argument(
        "--security",
        choices=topology.SECURITY,
        default="",
        help="what seals the link (default: what the kernel can do)",
    )
    up.set_defaults(verb=_up)
    for name, verb, summary in (
        ("status", _status, "what runs where"),
        ("heal", _heal, "continue, reconnect and restart whatever was broken"),
        ("down", _down, "remove everything"),
    ):
        inner.add_parser(name, parents=[named], help=summary).set_defaults(verb=verb)
    run = inner.add_parser("exec", parents=[named], help="run a command on a host")
    run.add_argument("host", choices=[*topology.HOSTS, "client"], help="where")
    run.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    run.set_defaults(verb=_exec)
    for name, verb, summary in (
        ("kill", _kill, "SIGKILL, for a host with its wires"),
        ("hang", _hang, "SIGSTOP"),
    ):
        one = inner.add_parser(name, parents=[named], help=summary)
        one.add_argument("host", choices=topology.HOSTS, help="where")
        one.add_argument("--what", choices=faults.WHAT, required=True, help="what to hit")
        one.set_defaults(verb=verb)
    cut = inner.add_parser("cut", parents=[named], help="cut the hosts apart, or the arbiter off")
    cut.add_argument("path", choices=faults.PATHS, help="what to cut")
    cut.add_argument("--host", choices=topology.HOSTS, default="", help="cut only this host off")
    cut.set_defaults(verb=_cut)
    demo = inner.add_parser(
        "demo", parents=[named, guest], help="protect a VM, break something, check"
    )
    demo.add_argument(
        "--fault", choices=tuple(SCENARIOS), default="host-kill", help="what to break"
    )
    demo.set_defaults(verb=_demo)


def _guest_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--guest", choices=NAMES, default="", help="a guest that was built here (default: default)"
    )
    options.add_argument("--kernel", default="", help="your own guest's kernel")
    options.add_argument("--initrd", default="", help="its initrd")
    options.add_argument("--append", default="", help="its command line")
    options.add_argument("--memory", type=int, default=0, metavar="MIB", help="the guest's memory")
    options.add_argument("--disk", default="", help="raw image; each host gets a copy")
    options.add_argument(
        "--shared-disk", action="store_true", help="both hosts have one disk (not safe yet)"
    )
    options.add_argument(
        "--luns",
        nargs=len(topology.HOSTS),
        default=(),
        metavar=tuple(host.upper() for host in topology.HOSTS),
        help="one disk, by its name on each host: both have it, reserve it, and write to it",
    )
    options.add_argument("--guest-address", default="", help="where the client finds it")
    options.add_argument(
        "--accel", choices=("auto", "tcg", "kvm"), default="auto", help="accelerator"
    )
    return options
