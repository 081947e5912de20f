#!/bin/bash
# Makes the base image from Debian packages alone, for machines that reach no image registry.
#
#     images/base.sh IMAGE [SUITE]
#
# Python and the libraries it needs are unpacked, nothing is installed: no shell, no package
# manager, no setuid file. The same packages give the same bytes. As root, or as a user with
# subordinate ids (mmdebstrap's unshare mode).
set -euo pipefail

image=$1
suite=${2:-trixie}
engine=${ENGINE:-podman}
here=$(dirname "$(readlink -f "$0")")

context=$(mktemp --directory)
trap 'rm -rf "$context"' EXIT

# The machine's own Debian mirrors, asked for another suite. Where it has none (it is no Debian)
# the list is empty, and mmdebstrap takes Debian's own mirrors.
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016 # apt fills in what is in the format, not the shell
apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' \
        'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
    sed "s| $codename\\(-[a-z]*\\)\\? main| $suite\\1 main|" | sort -u > "$context/sources" || true
sources=()
[[ -s "$context/sources" ]] && sources=("$context/sources")

# python3-minimal and libpython3-stdlib are python3 less pydoc, pygettext and the like. What
# scanners and lawyers read stays: the copyright files, and the package list that hook writes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0} mmdebstrap --quiet --variant=extract --format=tar \
    --include=base-files,python3-minimal,libpython3-stdlib \
    --dpkgopt='path-exclude=/usr/bin/*' --dpkgopt='path-include=/usr/bin/python3*' \
    --dpkgopt='path-exclude=/usr/sbin/*' \
    --dpkgopt='path-exclude=/usr/libexec/*' \
    --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/pydoc_data/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/test/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/lib-dynload/_test*' \
    --dpkgopt='path-exclude=/usr/share/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-include=/usr/share/common-licenses/*' \
    --extract-hook="$here/base-hook.sh" \
    "$suite" - "${sources[@]}" |
    mmtarfilter --path-exclude='/dev/*' --path-exclude='/etc/apt/*' --path-exclude='/etc/dpkg/*' \
        --path-exclude='/etc/cron.daily/*' --path-exclude='/etc/logrotate.d/*' \
        --path-exclude='/usr/lib/systemd/*' > "$context/root.tar"

printf 'FROM scratch\nADD root.tar /\n' > "$context/Containerfile"
"$engine" build --quiet --tag "$image" --file "$context/Containerfile" "$context"
