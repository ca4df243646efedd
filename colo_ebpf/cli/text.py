# SPDX-License-Identifier: GPL-2.0-only
"""Answers of the daemon as text for people. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} ms"


def status(s: dict[str, Any]) -> str:
    """The whole of `colo-ebpf status`."""
    vm, points, held, peer = s["vm_process"], s["checkpoints"], s["held"], s["peer"]
    record, last = s["record"], points["last"]
    causes = ", ".join(f"{n} {cause}" for cause, n in points["by_cause"].items()) or "none"
    rows = [("PAUSED", "the VM does not change hosts by itself: `colo-ebpf resume` ends this")]
    rows = (rows if s["paused"] else []) + [
        ("VM", f"{s['vm']} on host {s['host']}"),
        ("state", f"{s['state']}: {s['sentence']}"),
        ("role", f"{s['role']}, {'protected' if s['protected'] else 'NOT protected'}"),
        ("record", f"generation {record['generation']}: {record['text']}" if record else "unread"),
        (
            "QEMU",
            f"pid {vm['pid']}, {vm['instance']}, {vm['accel']} ({vm['accel_why']})"
            if vm
            else "none",
        ),
        ("guest", _guest(s["guest"])),
        ("data plane", f"{s['mode']}, epoch {s['epoch']} {s['phase']}"),
        ("checkpoints", f"{points['total']} ({causes}), {points['unproven']} unproven"),
    ]
    if last:
        pause, reaction = last["pause_ms"], last["reaction_ms"]
        text = f"pause {pause:.1f} ms, {reaction:.1f} ms after its reason ({last['cause']})"
        rows.append(("last one", text))
    rows += [
        ("held now", f"{held['frames']} frames of {held['slots']}, {held['bytes']} bytes"),
        (
            "peer",
            f"{peer['name']}: {peer['state'] or 'unheard'}; link {_ms(peer['link_age_ms'])}, "
            f"management {_ms(peer['management_age_ms'])}, frames {_ms(peer['plane_age_ms'])} ago; "
            f"the link's longest silence: {_ms(peer['link_longest_ms'])}",
        ),
        ("disk", s["disk"]),
    ]
    if peer["error"]:
        rows.append(("peer error", peer["error"]))
    if s["progress"]:
        done, total = s["progress"]["done"], s["progress"]["total"]
        rows.append(("progress", f"{s['progress']['what']}: {done} of {total} bytes"))
    return table(rows) + "\n\n" + packets(s["packets"])


def _guest(guest: dict[str, Any]) -> str:
    reboots = f"{guest['reboots']} reboots of it seen"
    if guest["powered_off"]:
        return f"powered itself off; {reboots}"
    return f"PANICKED; {reboots}" if guest["panicked"] else reboots


def history(rows: list[dict[str, Any]], now_s: float) -> str:
    """The daemon's last sentences with their local times."""
    return "\n".join(f"{_clock(now_s - r['ago_ms'] / 1000)}  {r['sentence']}" for r in rows)


def _clock(at_s: float) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    return f"{stamp}.{int(at_s * 1000) % 1000:03d}"


def packets(rows: list[dict[str, Any]]) -> str:
    """Counters by program, verdict and reason."""
    head = ("PROGRAM", "VERDICT", "REASON", "PACKETS", "BYTES")
    lines = [
        (r["program"], r["verdict"], r["reason"], str(r["packets"]), str(r["bytes"])) for r in rows
    ]
    return table([head, *lines])


def mismatches(rows: list[dict[str, Any]]) -> str:
    """The mismatch log."""
    head = ("EPOCH", "FLOW", "OFFSET", "PRIMARY", "SECONDARY", "REASON")
    lines = [
        (
            str(r["epoch"]),
            r["flow"],
            str(r["offset"]),
            r["pvm_digest"],
            r["svm_digest"],
            r["reason"],
        )
        for r in rows
    ]
    return table([head, *lines])


def flows(rows: list[dict[str, Any]]) -> str:
    """Connections of the flow table."""
    head = ("FLOW", "EPOCH", "PRIMARY", "SECONDARY", "VERIFIED", "FLOOR", "HELD", "IDLE", "FLAGS")
    lines = [
        (
            r["flow"],
            str(r["epoch"]),
            str(r["pvm_next"]),
            str(r["svm_next"]),
            str(r["verified"]),
            str(r["floor"]),
            str(r["held"]),
            _ms(r["idle_ms"]),
            ",".join(r["flags"]),
        )
        for r in rows
    ]
    return table([head, *lines])


def held(rows: list[dict[str, Any]]) -> str:
    """Frames of the hold store."""
    head = ("FLOW", "KIND", "EPOCH", "AGE", "BYTES", "END", "DIGEST")
    lines = [
        (
            r["flow"],
            r["kind"],
            str(r["epoch"]),
            _ms(r["age_ms"]),
            str(r["bytes"]),
            str(r["end"]),
            r["digest"],
        )
        for r in rows
    ]
    return table([head, *lines])
