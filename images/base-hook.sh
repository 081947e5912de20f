#!/bin/bash
# What images/base.sh does in the unpacked tree $1, while the packages are still beside it.
set -euo pipefail
cd "$1"

# dpkg's own database knows nothing of packages that were only unpacked. One file a package in
# status.d is where distroless images keep it, and where scanners look.
mkdir -p var/lib/dpkg/status.d
for package in var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --field "$package" > "var/lib/dpkg/status.d/$name"
done

# Without it the C library asks DNS before it reads /etc/hosts.
echo 'hosts: files dns' > etc/nsswitch.conf

# On a read-only root nobody can compile later. Unchecked hashes: the files carry no time stamp. An
# all but empty environment, -B and -f: else what python imports on its way is compiled otherwise.
python() {
    env --ignore-environment PATH="$PATH" PYTHONHASHSEED=0 chroot . /usr/bin/python3 -B "$@"
}
stdlib=$(python -c 'import os; print(os.path.dirname(os.__file__))')
python -m compileall -qf --invalidation-mode unchecked-hash "$stdlib" >&2
