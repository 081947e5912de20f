#!/bin/bash
# Unpacks Debian packages and their dependencies into a directory or a tar file. Installs nothing.
#
#     images/debian.sh SUITE PACKAGES [mmdebstrap options] TARGET
#
# SUITE is a release such as trixie, or sid or experimental. The packages come from the Debian
# mirrors in this machine's apt configuration. On a machine without one, mmdebstrap's own defaults
# are used, and SUITE must be a release. The same package versions give the same bytes. Run it as
# root, or as a user with subordinate ids.
set -euo pipefail

suite=$1
packages=$2
shift 2
options=("${@:1:$#-1}")
target=${*: -1}

codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016 # apt fills in what is in the format, not the shell
sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' \
    'Created-By: Packages' 'Origin: Debian' 2> /dev/null |
    sed "s| $codename\\(-[a-z]*\\)\\? main| $suite\\1 main|" | sort --unique || true)
case $suite in
    # These two have no suites of updates.
    sid | experimental) sources=$(sed "/ $suite-/d" <<< "$sources") ;;
esac
if [[ $suite == experimental ]]; then
    # It contains additions to sid only, and apt installs nothing from it by default.
    sources=$(sed 'p; s/ experimental / sid /' <<< "$sources")
    # shellcheck disable=SC2016 # mmdebstrap's shell fills in the directory
    options+=(--setup-hook='printf "Package: *\nPin: release o=Debian\nPin-Priority: 500\n" \
        > "$1/etc/apt/preferences"')
fi

# mmdebstrap does not read the machine's apt configuration. Whether a mirror may be older than its
# own expiry date is the machine's decision, so pass that setting on.
valid_until=$(apt-config dump --format '%v' Acquire::Check-Valid-Until 2> /dev/null || true)
if [[ $valid_until ]]; then
    options+=(--aptopt="Acquire::Check-Valid-Until \"$valid_until\"")
fi

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
mmdebstrap --quiet --variant=extract --include="$packages" "${options[@]}" \
    "$suite" "$target" ${sources:+-} <<< "$sources"
