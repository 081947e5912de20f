#!/bin/bash
# Unpacks Debian packages and what they need, without installing them.
#
#     images/debian.sh SUITE PACKAGES [mmdebstrap options] TARGET
#
# From the machine's own Debian mirrors, asked for SUITE; where it has none, being no Debian, from
# those that mmdebstrap knows. Equal packages give equal bytes. As root, or as a user with
# subordinate ids.
set -euo pipefail

suite=$1
packages=$2
shift 2
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
# shellcheck disable=SC2016 # apt fills in what is in the format, not the shell
sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' \
    'Created-By: Packages' 'Origin: Debian' 2> /dev/null |
    sed "s| $codename\\(-[a-z]*\\)\\? main| $suite\\1 main|" | sort --unique || true)

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
mmdebstrap --quiet --variant=extract --include="$packages" "${@:1:$#-1}" \
    "$suite" "${@: -1}" ${sources:+-} <<< "$sources"
