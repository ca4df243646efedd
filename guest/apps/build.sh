#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Build the guest with real servers from Debian's packages: apps/build.sh OUTPUT-DIRECTORY
# OUTPUT-DIRECTORY is the default guest's, built before: its kernel, modules and `services` are
# used. Leaves in its directory `apps`: disk.ext4, initramfs.gz, what clients need to log in
# (id_ed25519, known_hosts) and pgbench, which Debian ships with the server.
# Nothing of a package runs on this host but in a chroot, and none of its maintainer scripts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
guest=$(cd "$1" && pwd)
out=$guest/apps
mkdir -p "$out"

servers=(redis-server nginx-light postgresql openssh-server busybox-static)
accounts=(root:0:/root postgres:70:/var/lib/postgresql redis:71:/var/lib/redis
	sshd:72:/run/sshd www-data:33:/var/www)
scale=5			# of pgbench: 500,000 accounts
file_bytes=20000000	# what clients fetch
free_mib=96		# of the disk, for what is written while it runs

work=
clean_up() { [ -z "$work" ] || rm -rf "$work"; }
trap clean_up EXIT

stale() { # FILE SOURCE...: it is missing, or a source is newer
	local file=$1 source
	shift
	[ -e "$file" ] || return 0
	for source; do [ "$source" -nt "$file" ] && return 0; done
	return 1
}

fetch_packages() { # against an empty status, so that all that they need comes too
	local root=$1
	mkdir -p "$work/archives/partial"
	chmod 755 "$work"
	chown -R _apt "$work/archives"	# apt downloads as that user
	: > "$work/status"
	apt-get install -qq -y --download-only --no-install-recommends \
		-o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
		"${servers[@]}" </dev/null >/dev/null
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
	for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$root/$directory"; done
	for package in "$work"/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink
	done
}

strip_root() { # what no server here reads
	local root=$1
	rm -rf "$root"/usr/share/{doc,i18n,info,lintian,locale,man,perl,perl5,vim,zsh} \
		"$root"/usr/lib/{apt,dpkg,init,locale,systemd,sysusers.d,tmpfiles.d} \
		"$root"/usr/lib/*/{gconv,perl,perl-base,perl5} \
		"$root"/usr/lib/*/{libLLVM,libperl,libz3}* \
		"$root"/usr/lib/llvm* \
		"$root"/usr/lib/postgresql/*/lib/bitcode "$root"/usr/lib/postgresql/*/lib/llvmjit* \
		"$root"/var/{cache,lib/dpkg,lib/apt}
}

accounts() {
	local root=$1 name number home
	: > "$root/etc/passwd"
	: > "$root/etc/group"
	for account in "${accounts[@]}"; do
		IFS=: read -r name number home <<< "$account"
		echo "$name:x:$number:$number::$home:/bin/sh" >> "$root/etc/passwd"
		echo "$name:x:$number:" >> "$root/etc/group"
		[[ $home == /run/* ]] || install -d -m 750 -o "$number" -g "$number" "$root$home"
	done
	chmod 755 "$root/var/www"
}

shell_and_programs() {
	local root=$1
	chroot "$root" /usr/bin/busybox --install -s /usr/bin 2>/dev/null || true	# some are there
	[ -e "$root/usr/bin/sh" ]
	install -m 755 "$guest/services" "$out/dirty" "$root/usr/bin/"
	install -m 755 "$here/init" "$root/usr/sbin/init"
	mkdir -p "$root"/{dev,proc,sys,run,tmp,root}
	chmod 1777 "$root/tmp"
	ln -sfn /run "$root/var/run"
}

web() {
	local root=$1
	install -m 644 "$here/nginx.conf" "$root/etc/nginx/nginx.conf"
	install -m 644 "$here/index.html" "$root/var/www/index.html"
	head -c "$file_bytes" /dev/urandom > "$root/var/www/file"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
		-subj /CN=guest -keyout "$root/etc/nginx/key.pem" -out "$root/etc/nginx/cert.pem" \
		2>/dev/null
	mkdir -p "$root/var/log/nginx" "$root/var/lib/nginx"
}

# Run a shell script in a mount namespace, where ROOT has the devices that programs need.
with_devices() { # ROOT SCRIPT ARGUMENT...
	local root=$1 script=$2
	shift 2
	unshare --mount sh -euc "
		root=\$1
		shift
		mount -t tmpfs tmpfs \$root/dev
		mkdir -m 1777 \$root/dev/shm
		mknod -m 666 \$root/dev/null c 1 3
		mknod -m 666 \$root/dev/zero c 1 5
		mknod -m 666 \$root/dev/random c 1 8
		mknod -m 666 \$root/dev/urandom c 1 9
		$script" sh "$root" "$@" </dev/null
}

login() {
	local root=$1
	rm -f "$out"/id_ed25519* "$root"/etc/ssh/ssh_host_*
	for file in "$out/id_ed25519" "$work/host"; do
		with_devices "$root" 'chroot $root ssh-keygen -q -t ed25519 -N "" -C guest -f /tmp/key'
		mv "$root/tmp/key" "$file"
		mv "$root/tmp/key.pub" "$file.pub"
	done
	install -m 600 "$work/host" "$root/etc/ssh/ssh_host_ed25519_key"
	install -m 600 "$here/sshd_config" "$root/etc/ssh/sshd_config"
	install -d -m 700 "$root/root" "$root/root/.ssh"
	install -m 600 "$out/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
	cut -d ' ' -f 1,2 "$work/host.pub" | sed 's/^/* /' > "$out/known_hosts"
}

# The cluster is made here, not at each boot.
database() {
	local root=$1 bin
	bin=$(cd "$root" && echo usr/lib/postgresql/*/bin)
	cp "$root/$bin/pgbench" "$out/pgbench"
	ln -s "/$bin" "$root/usr/lib/postgresql/bin"
	install -d -m 700 -o 70 -g 70 "$root/var/lib/postgresql/data"
	install -m 644 "$here/postgresql.conf" "$root/var/lib/postgresql/lab.conf"
	with_devices "$root" '
		bin=/usr/lib/postgresql/bin data=/var/lib/postgresql/data
		as_postgres() { chroot --userspec=70:70 "$root" "$@"; }
		as_postgres $bin/initdb -D $data --locale=C --encoding=UTF8 --auth=trust --no-sync \
			--wal-segsize=4
		echo "include '"'/var/lib/postgresql/lab.conf'"'" >> "$root$data/postgresql.conf"
		echo "host all all samenet trust" >> "$root$data/pg_hba.conf"
		trap "as_postgres $bin/pg_ctl -D $data -w -s stop" EXIT
		as_postgres $bin/pg_ctl -D $data -w -s -l /tmp/postgres.log \
			-o "-c fsync=off -c listen_addresses= -c max_wal_size=16MB" start
		as_postgres $bin/psql -q -h /tmp -c "create database bench" postgres
		as_postgres $bin/pgbench -q -h /tmp -i -s "$1" bench
	' "$scale" >"$work/database.log" 2>&1 || { cat "$work/database.log" >&2; exit 1; }
	rm -f "$root"/tmp/* "$root/$bin/pgbench"
}

image() {
	local root=$1 used_mib
	used_mib=$(du -sm "$root" | cut -f 1)
	rm -f "$out/disk.ext4"
	truncate -s $((used_mib + free_mib))M "$work/disk"
	mke2fs -q -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 -J size=16 \
		-d "$root" "$work/disk"
	mv "$work/disk" "$out/disk.ext4"
}

if stale "$out/dirty" "$here/dirty.c"; then
	gcc -O2 -Wall -Wextra -Werror -static -o "$out/dirty" "$here/dirty.c"
fi

if stale "$out/initramfs.gz" "$here/initramfs" "$guest/modules/order"; then
	echo "guest-apps: packing the initramfs"
	root=$(mktemp -d)
	mkdir -p "$root"/{bin,proc,sys,dev,modules,disk}
	cp /bin/busybox "$root/bin/busybox"
	cp "$guest"/modules/* "$root/modules/"
	install -m 755 "$here/initramfs" "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -9n) > "$out/initramfs.gz"
	rm -rf "$root"
fi

if stale "$out/disk.ext4" "$here"/* "$guest/services"; then
	work=$(mktemp -d)
	root=$work/root
	echo "guest-apps: fetching Debian's servers"
	fetch_packages "$root"
	strip_root "$root"
	accounts "$root"
	shell_and_programs "$root"
	web "$root"
	login "$root"
	install -m 644 "$here/redis.conf" "$root/etc/redis.conf"
	echo "guest-apps: making the database"
	database "$root"
	echo "guest-apps: making the disk"
	image "$root"
fi
echo "guest-apps: ready in $out"
