#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Build a system that runs this project's own Python on Debian's kernel: build.sh OUTPUT-DIRECTORY
# Kernels that lack IPsec or a SCSI target cannot test them, and a verifier that is newer than
# Debian's takes programs that Debian's refuses. QEMU runs Debian's kernel anywhere.
# Leaves vmlinuz and system.cpio there: an initramfs of kernel modules, Python and iproute2, whose
# /init runs /trial/main.py. Tests append an archive with that file, and with what it imports.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
. "$here/../../scripts/packages.sh"
mkdir -p "$1"
out=$(cd "$1" && pwd)
site=$(cd "$here/../.." && .venv/bin/python -c 'import pyroute2, os; print(os.path.dirname(os.path.dirname(pyroute2.__file__)))')

# What the link and a shared disk need; what those depend on comes by itself. A kernel may have some
# built in.
modules=(
	aesni_intel bridge cryptomgr ctr drbg esp4 esp6 gcm ghash_clmulni_intel ghash_generic
	hmac jitterentropy_rng sd_mod seqiv sha256_generic sha512_generic target_core_file tcm_loop tun
	veth vxlan wireguard xfrm_user
)

if [ "$here/build.sh" -ot "$out/system.cpio" ] && [ "$here/init" -ot "$out/system.cpio" ]; then
	exit 0
fi
known linux-image-cloud-amd64 || refresh
package=$(depends linux-image-cloud-amd64 'linux-image-[0-9].*' | head -n 1)
[ -n "$package" ] || { echo "link: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
echo "link: fetching Debian's kernel $package"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unpack "$work/kernel" "$package"
[ -e "$work/kernel/lib" ] || ln -s usr/lib "$work/kernel/lib"
version=$(ls "$work/kernel/lib/modules")
depmod -b "$work/kernel" "$version"

root=$work/root
mkdir -p "$root"/{bin,dev,etc,lib64,modules,proc,run,sys,tmp,trial,var}
ln -s ../run "$root/var/run"
ln -s . "$root/usr"
: > "$root/modules/order"
for module in "${modules[@]}"; do
	modprobe -d "$work/kernel" -S "$version" --show-depends "$module" 2>/dev/null || true
done | while read -r line file _; do
	[ "$line" = insmod ] || continue
	name=$(basename "$file" | sed 's/\.ko.*/.ko/')
	[ ! -e "$root/modules/$name" ] || continue
	case $file in
	*.xz) xz -dc "$file" > "$root/modules/$name" ;;
	*.zst) zstd -qdc "$file" > "$root/modules/$name" ;;
	*) cp "$file" "$root/modules/$name" ;;
	esac
	echo "$name" >> "$root/modules/order"
done
cp "$work"/kernel/boot/vmlinuz-* "$out/vmlinuz"

copy() { # FILE...: to where it is here, and the libraries it needs, which ldd names all
	local file
	for file in "$@" $(ldd "$@" 2>/dev/null | grep -o '=> /[^ ]*\|^\s*/lib[^ ]*' | tr -d '=> \t' | sort -u); do
		[ ! -e "$root$file" ] || continue
		mkdir -p "$root$(dirname "$file")"
		cp -L "$file" "$root$file"
	done
}
debian=$(readlink -f /usr/bin/python3)
stdlib=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
packages=/usr/lib/python3/dist-packages
mkdir -p "$root/$stdlib" "$root/$packages" "$root/site"
tar -c -C "$stdlib" --exclude=test --exclude=idlelib --exclude=tkinter --exclude=ensurepip \
	--exclude=lib2to3 --exclude=pydoc_data --exclude='config-*' . | tar -x -C "$root$stdlib"
for part in cryptography _cffi_backend.*; do
	cp -r "$packages"/$part "$root$packages/"
done
for part in pyroute2 msgspec; do
	cp -r "$site/$part" "$root/site/"
done
copy "$debian" "$(command -v bridge)" "$(command -v ip)" "$(command -v tc)"
# shellcheck disable=SC2046
copy $(find "$stdlib/lib-dynload" "$packages/cryptography" "$packages"/_cffi_backend.* "$site/msgspec" -name '*.so')
copy /usr/lib/*/libbpf.so.1
copy /usr/lib/*/ossl-modules/legacy.so	# cryptography insists on it
ln -sf "$(basename "$debian")" "$root/bin/python3"
install -m 755 /bin/busybox "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"
echo "link: packing the system"
(cd "$root" && find . | cpio --quiet -o -H newc) > "$out/system.cpio.new"
mv "$out/system.cpio.new" "$out/system.cpio"
