#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Install what colo-ebpf needs on Debian 12: packages, then a virtual environment in .venv.
# Idempotent: what is there already is skipped. `setup.sh bench`: also the clients of the
# benchmarks with real servers.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

packages=(
	bpftool busybox-static ca-certificates cpio e2fsprogs etcd-server gcc gzip iproute2 libbpf1 libc6-dev libseccomp2
	linux-headers-cloud-amd64 nginx-light openssl procps python3 python3-bpfcc python3-libnbd python3-venv
	qemu-system-x86 qemu-utils util-linux
)
[ "${1:-}" != bench ] || packages+=(apache2-utils curl libpq5 openssh-client redis-tools)

missing=()
for package in "${packages[@]}"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "setup: root is needed to install: ${missing[*]}" >&2
		exit 1
	fi
	echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	# nginx and etcd serve in the lab's and the tests' namespaces only: their packages must not
	# start one on this host, neither now nor when it boots.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' > "$policy"
		chmod 755 "$policy"
		trap 'rm -f "$policy"' EXIT
	fi
	apt-get update -q </dev/null
	apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null
	for package in "${missing[@]}"; do
		case $package in
		etcd-server) update-rc.d etcd disable ;;
		nginx-light) update-rc.d nginx disable ;;
		esac
	done
fi

# bcc and libnbd are Debian's, for Debian's own interpreter only: whatever else `python3` may be
# in PATH, the environment is made of that one and sees its packages.
stamp=.venv/.installed
wanted=$(sha256sum pyproject.toml | cut -d ' ' -f 1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
	echo "setup: making the virtual environment .venv"
	[ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/python -m pip install --progress-bar off --disable-pip-version-check \
		--editable '.[bench,dev]' </dev/null
	echo "$wanted" > "$stamp"
fi
echo "setup: ready"
