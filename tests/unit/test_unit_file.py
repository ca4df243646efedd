# SPDX-License-Identifier: GPL-2.0-only
"""The systemd unit, as systemd.unit(5) and systemd.service(5) read it."""

from __future__ import annotations

import configparser

from tests.capabilities import ROOT


def _unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "packaging" / "colo-ebpf.service")
    return parser


def test_a_daemon_that_is_refused_again_and_again_is_started_again_for_ever() -> None:
    """As found: an image on storage that is mounted late, five refusals, and the unit stays failed:
    systemd's start limit is five in ten seconds."""
    unit = _unit()
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "no limit (it belongs into [Unit])"


def test_one_that_was_killed_is_back_at_once() -> None:
    """However often before: systemd never forgets how often, so no delay may grow with it."""
    service = _unit()["Service"]
    assert service["RestartSec"] == "100ms"
    assert "RestartSteps" not in service
