#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# The default guest on disks that boot by themselves, by GRUB: build.sh GUEST-DIRECTORY
# Leaves boot.raw (BIOS) and boot-uefi.raw there: an MBR, the system on the first partition, room
# for the ledger on the second; and OVMF's two files, the firmware for UEFI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(cd "$1" && pwd)
system_mib=24 ledger_mib=16
mib=2048	# in sectors

fresh=yes
for made in boot.raw boot-uefi.raw OVMF_CODE_4M.fd OVMF_VARS_4M.fd; do
	for source in "$here/build.sh" "$out/vmlinuz" "$out/initramfs.gz"; do
		[ "$out/$made" -nt "$source" ] || fresh=
	done
done
[ -z "$fresh" ] || exit 0

echo "guest: fetching Debian's GRUB, OVMF and FAT tools, which are not installed"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
chown _apt "$work"	# apt downloads as that user
(cd "$work" &&
	apt-get download -qq grub-common grub-pc-bin grub-efi-amd64-bin libdevmapper1.02.1 ovmf \
		dosfstools mtools &&
	for package in ./*.deb; do dpkg-deb -x "$package" root; done)
root=$work/root
libraries=$(echo "$root"/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu | tr ' ' :)
PATH=$root/usr/bin:$root/usr/sbin:$root/sbin:/usr/sbin:/sbin:$PATH

echo "guest: making disks that boot"
mkdir -p "$work/system"
cp "$out/vmlinuz" "$out/initramfs.gz" "$work/system/"
cat > "$work/grub.cfg" <<'CONFIGURATION'
set root=(hd0,msdos1)
linux /vmlinuz console=ttyS0 quiet no_timer_check mitigations=off random.trust_cpu=on colo.ip=192.168.77.10/24 colo.gw=192.168.77.1 colo.ledger=vda2
initrd /initramfs.gz
boot
CONFIGURATION

grub() {	# PLATFORM OUTPUT MODULE...
	LD_LIBRARY_PATH=$libraries grub-mkimage -d "$root/usr/lib/grub/$1" -O "$1" -p / -c "$work/grub.cfg" \
		-o "$2" part_msdos linux "${@:3}"
}

entry() {	# TYPE FIRST-SECTOR SECTORS BOOT-FLAG: one of the partition table
	local number bytes="\\x$4\\x00\\x00\\x00\\x$1\\x00\\x00\\x00"
	for number in "$2" "$3"; do
		bytes+=$(printf '\\x%02x' $((number & 255)) $((number >> 8 & 255)) \
			$((number >> 16 & 255)) $((number >> 24 & 255)))
	done
	printf '%b' "$bytes"
}

disk() {	# NAME TYPE-OF-THE-FIRST-PARTITION FILE-SYSTEM CODE REST-OF-THE-CODE
	{
		head -c 446 "$4"
		entry "$2" "$mib" $((system_mib * mib)) 80
		entry 83 $((mib + system_mib * mib)) $((ledger_mib * mib)) 00
		head -c 32 /dev/zero
		printf '\x55\xaa'
		cat "$5"	# GRUB looks for the rest of itself in the second sector
	} > "$work/disk"
	truncate -s 1M "$work/disk"
	cat "$3" >> "$work/disk"
	truncate -s "$((1 + system_mib + ledger_mib))M" "$work/disk"
	mv "$work/disk" "$out/$1"
}

grub i386-pc "$work/core.img" biosdisk ext2
mke2fs -q -t ext2 -d "$work/system" "$work/ext2" "${system_mib}M" > /dev/null
disk boot.raw 83 "$work/ext2" "$root/usr/lib/grub/i386-pc/boot.img" "$work/core.img"

mkdir -p "$work/system/EFI/BOOT"
grub x86_64-efi "$work/system/EFI/BOOT/BOOTX64.EFI" fat
mkfs.fat -C "$work/fat" $((system_mib * 1024)) > /dev/null
mcopy -s -i "$work/fat" "$work"/system/* ::
disk boot-uefi.raw ef "$work/fat" /dev/zero /dev/null

cp "$root/usr/share/OVMF/OVMF_CODE_4M.fd" "$root/usr/share/OVMF/OVMF_VARS_4M.fd" "$out/"
touch "$out"/boot*.raw "$out"/OVMF_*.fd
echo "guest: ready in $out/boot.raw and boot-uefi.raw"
