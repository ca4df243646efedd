# SPDX-License-Identifier: GPL-2.0-only
"""What `scripts/setup.sh` says on systems it does not know, and what it never installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.capabilities import ROOT

SETUP = ROOT / "scripts" / "setup.sh"
_ELSEWHERE = 'mount --bind "$1" /etc/os-release && exec "$2"'


def _on(release: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run it where /etc/os-release is this, in a mount namespace of its own."""
    file = tmp_path / "os-release"
    file.write_text(release)
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _ELSEWHERE, "sh"]
    done = subprocess.run(
        [*words, str(file), str(SETUP)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"', "Ubuntu 24.04.3 LTS"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian 11"', "Debian 11"),
        ('ID=debian\nPRETTY_NAME="Debian GNU/Linux forky/sid"', "Debian GNU/Linux forky/sid"),
        ('ID="almalinux"\nVERSION_ID="10.0"\nPRETTY_NAME="AlmaLinux 10.0"', "AlmaLinux 10.0"),
    ],
)
def test_another_system_is_told_so_in_a_sentence(release: str, name: str, tmp_path: Path) -> None:
    done = _on(release, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"setup: this is {name} on ")
    assert done.stderr.count("\n") == 1


def test_no_package_is_named_that_brings_a_kernel() -> None:
    text = SETUP.read_text()
    names = re.search(r"^packages=\((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    assert names
    assert not [word for word in names[1].split() if word.startswith("linux-")]
