#!/bin/bash
# Makes the base image from Debian packages alone, for machines that reach no image registry.
#
#     images/base.sh IMAGE [SUITE]
#
# Python and the libraries it needs are unpacked, nothing is installed: no shell, no package
# manager, no setuid file.
set -euo pipefail

image=$1
suite=${2:-trixie}
engine=${ENGINE:-podman}
here=$(dirname "$(readlink -f "$0")")

context=$(mktemp --directory)
trap 'rm -rf "$context"' EXIT

# python3-minimal and libpython3-stdlib are python3 less pydoc, pygettext and the like. What
# scanners and lawyers read stays: the copyright files, and the list of packages that the hook
# writes.
"$here/debian.sh" "$suite" base-files,python3-minimal,libpython3-stdlib --format=tar \
    --dpkgopt='path-exclude=/usr/bin/*' --dpkgopt='path-include=/usr/bin/python3*' \
    --dpkgopt='path-exclude=/usr/sbin/*' \
    --dpkgopt='path-exclude=/usr/libexec/*' \
    --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
    --dpkgopt='path-exclude=/usr/lib/systemd/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/pydoc_data/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/test/*' \
    --dpkgopt='path-exclude=/usr/lib/python3*/lib-dynload/_test*' \
    --dpkgopt='path-exclude=/etc/cron.daily/*' --dpkgopt='path-exclude=/etc/logrotate.d/*' \
    --dpkgopt='path-exclude=/usr/share/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-include=/usr/share/common-licenses/*' \
    --extract-hook="$here/base-hook.sh" - |
    # What mmdebstrap itself put there.
    mmtarfilter --path-exclude='/dev/*' --path-exclude='/etc/apt*' --path-exclude='/etc/dpkg*' \
        > "$context/root.tar"

printf 'FROM scratch\nADD root.tar /\n' > "$context/Containerfile"
"$engine" build --quiet --tag "$image" --file "$context/Containerfile" "$context"
