#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Build the default guest from Debian's own packages: build.sh OUTPUT-DIRECTORY
# Leaves vmlinuz, initramfs.gz and libtcgdirty.so there. Skips what is newer than its sources.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ "$here/build.sh" -nt "$out/vmlinuz" ]; then
	echo "guest: fetching Debian's cloud kernel"
	package=$(apt-cache depends linux-image-cloud-amd64 |
		sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	chmod 755 "$work"
	chown _apt "$work"	# apt downloads as that user
	(cd "$work" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb root)
	rm -rf "$out/modules"
	mkdir -p "$out/modules"
	modules=$(echo "$work"/root/lib/modules/*)
	: > "$out/modules/order"
	for name in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci \
		failover net_failover virtio_net virtio_blk pvpanic pvpanic-mmio \
		crc16 libcrc32c crc32c_generic mbcache jbd2 ext4; do
		file=$(find "$modules" -name "$name.ko*" | head -n 1)
		[ -n "$file" ] || continue	# built into this kernel
		cp "$file" "$out/modules/"
		basename "$file" >> "$out/modules/order"
	done
	cp "$work"/root/boot/vmlinuz-* "$out/vmlinuz"
fi

stale=
for program in services writer; do
	if [ "$here/$program.c" -nt "$out/$program" ]; then
		gcc -O2 -Wall -Wextra -Werror -static -o "$out/$program" "$here/$program.c"
	fi
	[ "$out/$program" -nt "$out/initramfs.gz" ] && stale=yes
done

if [ -n "$stale" ] || [ "$here/init" -nt "$out/initramfs.gz" ]; then
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
