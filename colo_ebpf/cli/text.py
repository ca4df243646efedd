# SPDX-License-Identifier: GPL-2.0-only
"""Answers of the daemon as text for people. Pure."""

from __future__ import annotations

import datetime
import time
from typing import Any

from colo_ebpf.render import table


def config_check(found: dict[str, Any]) -> str:
    """A file that is in order, and what the VM takes on this host."""
    udp, tcp = (" and ".join(map(str, found[what])) for what in ("link_udp", "link_tcp"))
    (management,) = found["management_udp"]
    return (
        f"{found['file']}: in order (images {found['images']})\n"
        f"link device {found['link_device']}; ports of the link: UDP {udp}, TCP {tcp}; "
        f"of the management path: UDP {management}"
    )


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} ms"


def paused(s: dict[str, Any]) -> str:
    """Of a daemon that may be older than this command."""
    word = s.get("pause") or {}
    said = str(word.get("sentence", "")) if word.get("why") or word.get("until_s") else ""
    return said or "paused by the operator"


def status(s: dict[str, Any]) -> str:
    """The whole of `colo-ebpf status`."""
    vm, points, held, peer = s["vm_process"], s["checkpoints"], s["held"], s["peer"]
    record, last = s["record"], points["last"]
    causes = ", ".join(f"{n} {cause}" for cause, n in points["by_cause"].items()) or "none"
    still = "the VM does not change hosts by itself: `colo-ebpf resume` ends this"
    rows = [("PAUSED", f"{paused(s)}; {still}")]
    rows = (rows if s["paused"] else []) + [
        ("VM", f"{s['vm']} on host {s['host']}"),
        ("state", f"{s['state']}: {s['sentence']}"),
        ("role", f"{s['role']}, {'protected' if s['protected'] else _not_protected(s)}"),
        ("record", f"generation {record['generation']}: {record['text']}" if record else "unread"),
        (
            "QEMU",
            f"pid {vm['pid']}, {vm['instance']}, {vm['accel']} ({vm['accel_why']})"
            if vm
            else "none",
        ),
        ("guest", _guest(s["guest"])),
        ("data plane", f"{s['mode']}, epoch {s['epoch']} {s['phase']}, held by {s['hooks']}"),
        ("checkpoints", f"{points['total']} ({causes}), {points['unproven']} unproven"),
    ]
    if last:
        pause, reaction = last["pause_ms"], last["reaction_ms"]
        text = f"pause {pause:.1f} ms, {reaction:.1f} ms after its cause ({last['cause']})"
        rows.append(("last one", text))
    rows += [
        ("held now", f"{held['frames']} frames of {held['slots']}, {held['bytes']} bytes"),
        (
            "peer",
            f"{peer['name']}: {peer['state'] or 'unheard'}; link {_ms(peer['link_age_ms'])}, "
            f"management {_ms(peer['management_age_ms'])}, frames {_ms(peer['plane_age_ms'])} ago; "
            f"the link's longest silence: {_ms(peer['link_longest_ms'])}",
        ),
        ("link", _link(s["link"])),
        ("disk", s["disk"]),
    ]
    wrong = (
        ("LACKS", s["lacks"]),
        ("peer LACKS", peer["lacks"]),
        ("ARBITER", s.get("arbiter_error", "")),
        ("peer's ARBITER", peer.get("arbiter_error", "")),
    )
    rows += [(what, said) for what, said in wrong if said]
    rows += [("CANNOT WRITE", file) for file in s.get("unwritten", ())]
    if s.get("healed"):
        rows.append(("last replica", s["healed"]))
    attempt = s["last_attempt"]
    if attempt["given_up"]:
        rows.append(("last attempt", f"to pair failed: {attempt['given_up']}"))
    if attempt["qemu_said"]:
        rows.append(("replica's QEMU", attempt["qemu_said"]))
    if peer["error"]:
        rows.append(("peer error", peer["error"]))
    if s["progress"]:
        rows.append(("progress", _progress(s["progress"])))
    return table(rows) + "\n\n" + packets(s["packets"])


def _progress(one: dict[str, Any]) -> str:
    said = f"{one['what']}: {one['done']} of {one['total']} bytes"
    if one["left_s"] is None:
        return said
    left = datetime.timedelta(seconds=one["left_s"])
    return f"{said}, {one['rate_bytes_s'] / (1 << 20):.1f} MiB/s, {left} left"


_SEALS = {"ipsec": "IPsec", "wireguard": "WireGuard"}


def _link(one: dict[str, Any]) -> str:
    if one["warning"]:
        return f"NOT sealed: {one['warning']}"
    how, by = _SEALS[one["security"]], one.get("by", "")
    if not one["agreed"]:
        return f"to be sealed by {how}, no key is agreed with the peer"
    age = datetime.timedelta(seconds=int(one["key_age_ms"] / 1000))
    refused = ", ".join(f"{count} {why}" for why, count in one["refused"].items())
    who = f" ({by})" if by not in ("", "the kernel") else ""
    said = f"sealed by {how}{who}, its key is {age} old"
    return said + (f"; refused by the kernel: {refused}" if refused else "")


def _not_protected(s: dict[str, Any]) -> str:
    why = s["unprotected_why"]
    return "NOT protected" + (f": {why}" if why != s["sentence"] else "")


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
