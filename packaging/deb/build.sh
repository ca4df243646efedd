#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Build the Debian packages for the release this runs on: build.sh OUTPUT-DIRECTORY
# What Debian lacks, or has too old, of our Python dependencies goes into the package, in an
# environment below /usr/lib/colo-ebpf that sees Debian's python3-bpfcc and the like.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=$PWD/.venv/bin/python	# of which only pip is used
# The interpreter of Debian, for which the packages are.
debian=/usr/bin/python3

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
version=$(PYTHONPATH=. $debian -c 'import colo_ebpf; print(colo_ebpf.__version__)')
release=$version-1+deb$(. /etc/os-release && echo "$VERSION_ID")
architecture=$(dpkg --print-architecture)
minor=$($debian -c 'import sys; print(sys.version_info.minor)')
maintainer='colo-ebpf maintainers <maintainers@colo-ebpf.invalid>'

stage=$(mktemp -d "$out/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
base=$stage/colo-ebpf lab=$stage/colo-ebpf-lab tools=$stage/tools
home=usr/lib/colo-ebpf
umask 022

install_tree() { # FROM TO: what git has, or all of it where there is no git
	mkdir -p "$2"
	tar -c --exclude=__pycache__ -C "$1" . | tar -x -C "$2" --no-same-owner
}

# --- the environment ------------------------------------------------------------------------
echo "deb: fetching dependencies for Python 3.$minor"
$debian -m venv --without-pip --system-site-packages "$base/$home/venv"
venv=$base/$home/venv
site=$venv/lib/python3.$minor/site-packages
# shellcheck disable=SC2016
wanted() { # TABLE: the requirements there, a line each
	$debian -c 'import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
what = sys.argv[1]
print(*project[what] if what == "dependencies" else project["optional-dependencies"][what], sep="\n")' "$1"
}
fetch() { # TABLE OPTION...
	wanted "$1" > "$stage/wanted"
	"$python" -m pip --python "$venv/bin/python" install --quiet --ignore-installed --no-compile \
		--disable-pip-version-check --no-warn-script-location "${@:2}" -r "$stage/wanted" </dev/null
}
fetch dependencies
fetch package --target "$tools"
find "$venv/bin" -mindepth 1 ! -name 'python*' -delete
rm -rf "$venv/include" "$venv/share"
rm -f "$venv/lib64" "$venv/.gitignore"
ln -sf "$debian" "$venv/bin/python"
find "$venv/bin" -name 'python?*' -delete
sed -i '/^command = /d' "$venv/pyvenv.cfg"
find "$site" -name '*.so' -exec strip --strip-unneeded {} +
find "$site" -name '*.so' -exec chmod 644 {} +
# Sources of what is compiled, and tests of others.
find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.h' \) -delete
find "$site" -type d \( -name tests -o -name test -o -name .hash \) -prune -exec rm -rf {} +
echo /$home > "$site/colo-ebpf.pth"

# --- the program ----------------------------------------------------------------------------
install_tree colo_ebpf "$base/$home/colo_ebpf"
install_tree bpf "$base/$home/bpf"
rm -r "$base/$home/bpf/bench"
mkdir -p "$base/usr/bin"
cat > "$base/usr/bin/colo-ebpf" <<-'END'
	#!/bin/sh
	exec /usr/lib/colo-ebpf/venv/bin/python -I -m colo_ebpf.cli.main "$@"
END
chmod 755 "$base/usr/bin/colo-ebpf"

mkdir -p "$lab/$home/colo_ebpf/cli" "$lab/$home/bpf" "$lab/$home/scripts"
for part in lab bench cli/lab.py cli/bench.py; do
	mv "$base/$home/colo_ebpf/$part" "$lab/$home/colo_ebpf/$part"
done
install_tree bpf/bench "$lab/$home/bpf/bench"
install_tree guest "$lab/$home/guest"
install -m 644 scripts/packages.sh "$lab/$home/scripts/"
# Where the lab looks for its guest; what is built is nothing of the package.
ln -s /var/lib/colo-ebpf/build "$lab/$home/build"

# --- what surrounds it ----------------------------------------------------------------------
# Of all of it: the package has less, and the manual and completions tell of both.
mkdir "$stage/made"
env -u PYTHONPATH PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD:$tools" "$venv/bin/python" \
	packaging/generate.py "$stage/made"
mkdir -p "$base"/usr/share/{man/man1,man/man5,bash-completion/completions,zsh/vendor-completions}
for section in 1 5; do
	gzip -9n < "$stage/made/colo-ebpf.$section" > "$base/usr/share/man/man$section/colo-ebpf.$section.gz"
done
install -m 644 "$stage/made/colo-ebpf.bash" "$base/usr/share/bash-completion/completions/colo-ebpf"
install -m 644 "$stage/made/colo-ebpf.zsh" "$base/usr/share/zsh/vendor-completions/_colo-ebpf"
mkdir -p "$base/lib/systemd/system" "$base/usr/lib/sysctl.d" "$base/etc/colo-ebpf/vms" \
	"$base/var/lib/colo-ebpf"
install -m 644 packaging/*.service "$base/lib/systemd/system/"
# Since Debian 13 units are below /usr alone.
if [ "$minor" -gt 11 ]; then
	mv "$base/lib/systemd" "$base/usr/lib/systemd" && rmdir "$base/lib"
fi
install -m 644 packaging/60-colo-ebpf.conf "$base/usr/lib/sysctl.d/"
doc=$base/usr/share/doc/colo-ebpf
mkdir -p "$doc/examples"
for part in packaging/*/; do
	[ "$part" = packaging/deb/ ] || install_tree "$part" "$doc/examples/$(basename "$part")"
done
install -m 644 README.md CONTRIBUTING.md SECURITY.md "$doc/"
install_tree docs "$doc/docs"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD "$venv/bin/python" -m colo_ebpf.cli.main config example \
	> "$doc/examples/config.toml"

# From here on nothing is run in it, and the link is right where it will be.
ln -sf ../../../../bin/python3 "$venv/bin/python"

# --- packages -------------------------------------------------------------------------------
pack() { # NAME TREE: with the control file on stdin
	local name=$1 tree=$2 doc=$2/usr/share/doc/$1
	mkdir -p "$tree/DEBIAN" "$doc"
	install -m 644 packaging/deb/copyright "$doc/copyright"
	gzip -9n > "$doc/changelog.Debian.gz" <<-END
		colo-ebpf ($release) unstable; urgency=medium

		  * Version $version, built for $(. /etc/os-release && echo "$PRETTY_NAME").

		 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
	END
	for script in postinst prerm postrm; do
		[ ! -e "packaging/deb/$name.$script" ] ||
			install -m 755 "packaging/deb/$name.$script" "$tree/DEBIAN/$script"
	done
	if [ -e "packaging/deb/$name.lintian-overrides" ]; then
		mkdir -p "$tree/usr/share/lintian/overrides"
		install -m 644 "packaging/deb/$name.lintian-overrides" "$tree/usr/share/lintian/overrides/$name"
	fi
	find "$tree" -name __pycache__ -prune -exec rm -rf {} +
	find "$tree" -type d -exec chmod 755 {} +
	(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z |
		xargs -0 md5sum > DEBIAN/md5sums)
	cat > "$tree/DEBIAN/control" <<-END
		Package: $name
		Source: colo-ebpf
		Version: $release
		Maintainer: $maintainer
		Section: admin
		Priority: optional
		Installed-Size: $(du -k -s --exclude=DEBIAN "$tree" | cut -f 1)
	END
	cat >> "$tree/DEBIAN/control"
	dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/" >/dev/null
	echo "deb: $out/${name}_${release}_$(dpkg-deb -f "$out/${name}_${release}_"*.deb Architecture).deb"
}
rm -f "$out"/colo-ebpf_*.deb "$out"/colo-ebpf-lab_*.deb

pack colo-ebpf-lab "$lab" <<END
Architecture: all
Depends: colo-ebpf (= $release), bpftool, busybox-static, ca-certificates, cpio, e2fsprogs, gcc, libc6-dev, nftables, openssl, procps, xz-utils
Suggests: apache2-utils, curl, etcd-server, nginx-light, openssh-client, redis-tools
Description: lab and benchmarks of colo-ebpf
 Two hosts and a client out of network namespaces, to see a virtual machine
 outlive its host, and benchmarks on them. Compilers and servers come with it:
 nothing for a hypervisor.
END
pack colo-ebpf "$base" <<END
Architecture: $architecture
Depends: libc6 (>= 2.36), acl, adduser, python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), python3-bpfcc, python3-cryptography, python3-libnbd, libbpf1, libseccomp2, iproute2, kmod, qemu-system-x86, qemu-utils
Recommends: python3-prometheus-client
Suggests: colo-ebpf-lab, linux-headers-$architecture, wireguard-go
Description: keep a virtual machine serving through the death of its host
 Two copies of a virtual machine run in parallel on two hosts. What clients
 send reaches both; what they answer leaves only when both answered the same.
 Where they differ, a checkpoint makes the second equal to the first again.
 When one host dies the other goes on: connections live, nothing that a client
 was told is lost.
 .
 This is COLO: QEMU has its checkpoints and its block replication; here are the
 network proxy, in the kernel, and the control plane.
END
