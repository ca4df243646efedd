# SPDX-License-Identifier: GPL-2.0-only
"""What an observer on the link learns and can do: nothing. Who may write to a shared disk. Whether
the data plane is taken. Run on Debian's kernel, in one boot."""

from __future__ import annotations

import pytest

from tests.capabilities import require
from tests.link import machine, programs, reservations, scenarios, tunnels


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    require("guest-link", "qemu", "bpf")
    return machine.run(tmp_path_factory.mktemp("link"))


@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one.__name__, id=f"{kind}-{one.__name__}")
        for kind, room in (
            ("ipsec", scenarios),
            ("wireguard", tunnels),
            ("scsi", reservations),
            ("bpf", programs),
        )
        for one in room.ALL
    ],
)
def test_on_debians_kernel(outcome: tuple[dict[str, str], str], name: str) -> None:
    found, printed = outcome
    assert found.get(name, f"it did not end:\n{printed[-3000:]}") == ""
