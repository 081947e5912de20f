#!/bin/bash
# Fetches the pinned wheels into build/wheels, so that the build needs no network and this
# machine's own pip configuration (mirror, proxy, certificates) counts. Every hash is checked.
#
#     images/wheels.sh PYTHON_VERSION     the version of the base's python3, for example 3.13
set -euo pipefail

version=$1
machine=${MACHINE:-$(uname -m)}
wheels=build/wheels/
rm -rf "$wheels"

options=(--quiet --no-deps --require-hashes --only-binary=:all: --dest "$wheels"
    --implementation cp --python-version "$version" --abi "cp${version/./}" --abi abi3 --abi none)
# glibc 2.28: every distribution whose Python is 3.11 or later has it.
for minor in 17 26 27 28; do
    options+=(--platform "manylinux_2_${minor}_$machine")
done
options+=(--platform "manylinux2014_$machine")

for requirements in images/requirements-build.txt images/requirements.txt; do
    "${PYTHON:-python3}" -m pip download "${options[@]}" --requirement "$requirements"
done
