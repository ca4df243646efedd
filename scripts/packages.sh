# SPDX-License-Identifier: GPL-2.0-only
# For the other scripts to read (`.`): Debian's packages, without installing them.

refresh() { # apt's lists, once; without root those that are there have to do
	[ -z "${refreshed:-}" ] || return 0
	refreshed=yes
	[ "$(id -u)" -ne 0 ] || apt-get update -q </dev/null
}

known() { # PACKAGE: this release has it
	apt-cache show --no-all-versions "$1" >/dev/null 2>&1
}

# Print the packages that PACKAGE depends on whose names match PATTERN (of sed).
depends() { # PACKAGE PATTERN
	apt-cache depends "$1" | sed -n "s/^ *|\{0,1\}Depends: \($2\)\$/\1/p"
}

# Download packages and unpack them: nothing is configured, no script of theirs runs.
unpack() { # DIRECTORY PACKAGE...
	local directory=$1 archives
	shift
	archives=$(mktemp -d)
	chmod 755 "$archives"
	[ "$(id -u)" -ne 0 ] || chown _apt "$archives"	# apt downloads as that user
	mkdir -p "$directory"
	directory=$(cd "$directory" && pwd)
	(
		trap 'rm -rf "$archives"' EXIT
		cd "$archives"
		apt-get download -qq "$@" </dev/null
		for archive in ./*.deb; do dpkg-deb -x "$archive" "$directory"; done
	)
}
