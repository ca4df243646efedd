#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Install what colo-ebpf needs on Debian 12 or 13: packages, then a virtual environment in .venv,
# then kernel headers below build/. Idempotent: what is there already is skipped.
# `setup.sh bench`: also the clients of the benchmarks with real servers, and a browser for pages.
# `setup.sh deb-test`: also what looks at packages, and what installs them in a fresh root.
#
# No kernel is ever installed, nor a package that depends on one: the next boot might choose it.
# The packages of kernel headers do since Debian 13, so they are unpacked and not installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/packages.sh

system=$(. /etc/os-release 2>/dev/null && echo "$ID ${VERSION_ID:-}") || system=unknown
architecture=$(dpkg --print-architecture 2>/dev/null) || architecture=$(uname -m)
case "$system $architecture" in
"debian 12 amd64" | "debian 13 amd64") ;;	# the names below are the same in both
*)
	name=$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-}") || true
	echo "setup: this is ${name:-$system} on $architecture, and what to install is known for" \
		"Debian 12 and 13 on amd64 only; docs/operate/platforms.md has what was tried, and what" \
		"colo-ebpf needs elsewhere" >&2
	exit 1
	;;
esac

packages=(
	acl bpftool busybox-static ca-certificates cpio e2fsprogs etcd-server gcc groff-base gzip
	iproute2 kmod libbpf1 libc6-dev libseccomp2 libvirt-clients nftables nginx-light openssl procps python3 python3-bpfcc python3-cryptography
	python3-libnbd python3-venv qemu-system-x86 qemu-utils util-linux wireguard-go xz-utils
)
case ${1:-} in
bench) packages+=(apache2-utils chromium curl libpq5 openssh-client redis-tools) ;;
deb-test) packages+=(debootstrap lintian openssh-client systemd-container) ;;
esac

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
	refresh
	apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null
	for package in "${missing[@]}"; do
		case $package in
		etcd-server) update-rc.d etcd disable ;;
		nginx-light) update-rc.d nginx disable ;;
		esac
	done
fi

# bcc, cryptography and libnbd are Debian's, for Debian's own interpreter only: whatever else `python3`
# may be in PATH, the environment is made of that one and sees its packages.
stamp=.venv/.installed
wanted=$(sha256sum pyproject.toml | cut -d ' ' -f 1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
	echo "setup: making the virtual environment .venv"
	[ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/python -m pip install --progress-bar off --disable-pip-version-check \
		--editable '.[bench,dev]' </dev/null
	echo "$wanted" > "$stamp"
fi
# For bcc. Those of any kernel do; those of the running one are the best.
if ! .venv/bin/python -m colo_ebpf.datapath.bpf.kernel_headers; then
	refresh
	headers=linux-headers-$(uname -r)
	known "$headers" || headers=$(depends linux-headers-cloud-amd64 'linux-headers-[0-9].*')
	[ -n "$headers" ] || { echo "setup: apt knows no kernel headers" >&2; exit 1; }
	echo "setup: unpacking $headers below build/headers"
	halves=$(depends "$headers" 'linux-headers-.*-common.*\|linux-kbuild-.*')
	unpack build/headers "$headers" $halves
fi
# promtool, which tests the metrics and the rules of alerts. Before Debian 13 its package has a server,
# which would be started, and pages for browsers: it is unpacked and not installed.
if ! command -v promtool >/dev/null && [ ! -x build/prometheus/usr/bin/promtool ]; then
	refresh
	echo "setup: unpacking promtool below build/prometheus"
	promtool=promtool
	known "$promtool" || promtool=prometheus
	unpack build/prometheus "$promtool"
	rm -f build/prometheus/usr/bin/prometheus
fi
echo "setup: ready"
