# SPDX-License-Identifier: GPL-2.0-only
"""What the demo says at its end: a timeline, a table of checks, figures that are not checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from colo_ebpf.render import table


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must be true."""

    name: str
    ok: bool
    detail: str


@dataclass
class Report:
    """The outcome of one demo."""

    fault: str
    timeline: list[tuple[float, str, str]] = field(default_factory=list)  # seconds, who, what
    checks: list[Check] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every check holds, and there are some."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, ok: bool, detail: str) -> None:
        """Add a check."""
        self.checks.append(Check(name, ok, detail))

    def figure(self, name: str, value: str) -> None:
        """Add a figure."""
        self.figures.append((name, value))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "fault": self.fault,
            "ok": self.ok,
            "timeline": [
                {"at_s": round(at, 3), "who": who, "what": what}
                for at, who, what in sorted(self.timeline)
            ],
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in self.checks],
            "figures": dict(self.figures),
        }

    def text(self) -> str:
        """For people."""
        times = [(f"{at:8.3f} s", who, what) for at, who, what in sorted(self.timeline)]
        checks = [("ok" if c.ok else "FAILED", c.name, c.detail) for c in self.checks]
        verdict = "the client never noticed" if self.ok else "FAILED"
        parts = [f"timeline ({self.fault})", table(times), "", table(checks), ""]
        return "\n".join([*parts, table(self.figures), "", f"{self.fault}: {verdict}"])
