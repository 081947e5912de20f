#!/bin/bash
# Makes the base image from Debian packages alone, for machines that reach no image registry.
#
#     images/base.sh IMAGE [SUITE]
#
# Python, nft and the libraries they need are unpacked, nothing is installed: no shell, no package
# manager, no setuid file.
set -euo pipefail

image=$1
suite=${2:-trixie}
engine=${ENGINE:-podman}
here=$(dirname "$(readlink -f "$0")")

context=$(mktemp --directory)
trap 'rm -rf "$context"' EXIT

python='/usr/lib/python3*'
unwanted=(
    '/etc/cron.daily/*' '/etc/logrotate.d/*' '/usr/bin/*' '/usr/sbin/*' '/usr/libexec/*'
    '/usr/lib/systemd/*' '/usr/lib/*/gconv/*' '/usr/share/*'
    # Modules that no daemon needs, and the libraries that only they use.
    "$python"/{curses,dbm,ensurepip,idlelib,pydoc_data,sqlite3,test,tkinter,turtledemo}/'*'
    "$python"/turtle.py "$python"/lib-dynload/{_curses,_dbm,_sqlite3,_test,readline}'*'
    '/usr/lib/*/lib'{db,form,history,menu,ncurses,panel,readline,sqlite3,tic}{-,.,w.,3.}'*'
)
wanted=('/usr/bin/python3*' /usr/sbin/nft)
wanted+=('/usr/share/common-licenses/*' '/usr/share/doc/*/copyright')

# The packages are nftables, and python3 less pydoc, pygettext and the like. What scanners and
# lawyers read stays: the copyright files, and the list of packages that the hook writes.
"$here/debian.sh" "$suite" base-files,nftables,python3-minimal,libpython3-stdlib --format=tar \
    "${unwanted[@]/#/--dpkgopt=path-exclude=}" "${wanted[@]/#/--dpkgopt=path-include=}" \
    --extract-hook="$here/base-hook.sh" - |
    # What mmdebstrap itself put there, this machine's name and name servers among it.
    mmtarfilter --path-exclude='/dev/*' --path-exclude='/etc/apt*' --path-exclude='/etc/dpkg*' \
        --path-exclude=/etc/hostname --path-exclude=/etc/resolv.conf > "$context/root.tar"

printf 'FROM scratch\nADD root.tar /\n' > "$context/Containerfile"
"$engine" build --quiet --tag "$image" --file "$context/Containerfile" "$context"
