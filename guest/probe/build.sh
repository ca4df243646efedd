#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# The probe as an image, in the file that is named: guest/probe/build.sh FILE
set -eu
object=$(mktemp)
trap 'rm -f "$object"' EXIT
as --64 -o "$object" "$(dirname "$0")/probe.S"
ld -m elf_x86_64 -z max-page-size=4096 -Ttext 0x100000 -Tbss 0x200000 --oformat binary \
	-o "$1" "$object"
