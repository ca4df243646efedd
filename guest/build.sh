#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Build the default guest from Debian's own packages: build.sh OUTPUT-DIRECTORY [KERNEL-PACKAGE]
# KERNEL-PACKAGE: linux-image-cloud-amd64 if not given; linux-image-amd64 is the ordinary one.
# Leaves vmlinuz, initramfs.gz and libtcgdirty.so there. Skips what is newer than its sources.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
. "$here/../scripts/packages.sh"
out=$1
kernel=${2:-linux-image-cloud-amd64}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# What the guest needs, and what it can do without; what those depend on comes by itself.
needed=(virtio_pci virtio_net virtio_blk ext4)
useful=(crc32c_generic pvpanic pvpanic-mmio pvpanic-pci)
# What it loads only if it is told to, by colo.scsi on its command line.
scsi=(virtio_scsi sd_mod sr_mod)

# Copy modules, in the order to load them; what is built into the kernel is none.
copy_modules() { # ROOT
	local root=$1 version
	# Where Debian 13 has them, and where Debian 12 has them, and where depmod looks.
	[ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
	mkdir -p "$root/usr/lib"
	[ -e "$root/usr/lib/modules" ] || ln -s ../../lib/modules "$root/usr/lib/modules"
	version=$(ls "$root/lib/modules")
	depmod -b "$root" "$version"
	rm -rf "$out/modules"
	mkdir -p "$out/modules"
	list_modules order "${useful[@]}" "${needed[@]}"
	list_modules order.scsi "${scsi[@]}"
	rm "$out/modules/found"
}

# One list, and its modules that no list before it has.
list_modules() { # LIST NAME...
	local list=$1 line name file
	shift
	for name in "$@"; do
		modprobe -d "$root" -S "$version" --show-depends "$name" 2>/dev/null ||
			[[ " ${useful[*]} " == *" $name "* ]] || echo "lacks $name"
	done > "$out/modules/found"
	if grep '^lacks' "$out/modules/found"; then
		echo "guest: $package has no such module" >&2
		exit 1
	fi
	: > "$out/modules/$list"
	while read -r line file _; do
		[ "$line" = insmod ] || continue
		name=$(basename "$file" | sed 's/\.ko.*/.ko/')
		[ ! -e "$out/modules/$name" ] || continue
		case $file in
		*.xz) xz -dc "$file" > "$out/modules/$name" ;;
		*.zst) zstd -qdc "$file" > "$out/modules/$name" ;;
		*) cp "$file" "$out/modules/$name" ;;
		esac
		echo "$name" >> "$out/modules/$list"
	done < "$out/modules/found"
}

if [ "$here/build.sh" -nt "$out/vmlinuz" ] ||
	[ "$(cat "$out/kernel" 2>/dev/null)" != "$kernel" ]; then
	known "$kernel" || refresh
	package=$(depends "$kernel" 'linux-image-[0-9].*' | head -n 1)
	[ -n "$package" ] || { echo "guest: apt knows no $kernel" >&2; exit 1; }
	echo "guest: fetching Debian's kernel $package"
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	unpack "$work" "$package"
	copy_modules "$work"
	cp "$work"/boot/vmlinuz-* "$out/vmlinuz"
	echo "$kernel" > "$out/kernel"
fi

stale=
for program in services writer; do
	if [ "$here/$program.c" -nt "$out/$program" ]; then
		gcc -O2 -Wall -Wextra -Werror -static -o "$out/$program" "$here/$program.c"
	fi
	[ "$out/$program" -nt "$out/initramfs.gz" ] && stale=yes
done

if [ -n "$stale" ] || [ "$here/init" -nt "$out/initramfs.gz" ] ||
	[ "$out/kernel" -nt "$out/initramfs.gz" ]; then
	echo "guest: packing the initramfs"
	root=$(mktemp -d)
	mkdir -p "$root"/{bin,proc,sys,dev,modules}
	cp /bin/busybox "$root/bin/busybox"
	cp "$out/services" "$out/writer" "$root/"
	cp "$out"/modules/* "$root/modules/"
	install -m 755 "$here/init" "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -9n) > "$out/initramfs.gz"
	rm -rf "$root"
fi

if [ "$here/lab-tcg/tcg_dirty.c" -nt "$out/libtcgdirty.so" ]; then
	gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$out/libtcgdirty.so" \
		"$here/lab-tcg/tcg_dirty.c" -ldl
fi
echo "guest: ready in $out"
