# SPDX-License-Identifier: GPL-2.0-only
"""Manual pages and completions, made of the parser and the keys: `generate.py DIRECTORY`.

Needs what the extra `package` of pyproject.toml names.
"""

import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from colo_ebpf import __version__
from colo_ebpf.cli import manual
from colo_ebpf.cli.parser import parser

SEE_ALSO = ".BR colo-ebpf (5), the pages in\n.I /usr/share/doc/colo-ebpf"


def main(out: Path) -> None:
    """Write colo-ebpf.1, colo-ebpf.5, colo-ebpf.bash and colo-ebpf.zsh."""
    commands = parser()
    page = Manpage(commands, format="single-commands-section")
    page.description = "protect a virtual machine against the death of its host"
    page.manual, page.source = "User commands", f"colo-ebpf {__version__}"
    page.add_section("see also", "=", SEE_ALSO)
    (out / "colo-ebpf.1").write_text(str(page))
    (out / "colo-ebpf.5").write_text(manual.page())
    for shell in ("bash", "zsh"):
        (out / f"colo-ebpf.{shell}").write_text(shtab.complete(commands, shell) + "\n")


main(Path(sys.argv[1]))
