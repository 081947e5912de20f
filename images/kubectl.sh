#!/bin/bash
# Prints the path of a kubectl whose kustomize is current (1.27 or later): the machine's own, or
# that of Debian 13, unpacked into build/ without installing it (Debian 12 has kubectl 1.20).
set -euo pipefail

minor=$(kubectl version --client --output=json 2> /dev/null |
    sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' || true)
if [[ ${minor:-0} -ge 27 ]]; then
    command -v kubectl
    exit
fi

kubectl=build/kubectl/usr/bin/kubectl
if [[ ! -x $kubectl ]]; then
    rm -rf build/kubectl
    images/debian.sh trixie kubernetes-client \
        --format=directory --dpkgopt='path-exclude=/*' --dpkgopt='path-include=/usr/bin/kubectl' \
        build/kubectl
fi
echo "$kubectl"
