#!/bin/bash
# Builds both images, `egress-router` and `egress-dns-proxy`, tagged with the version and `latest`.
#
#     images/build.sh [more options for the engine's build command]
#
# Environment: ENGINE, BASE, IMAGE_PREFIX (a registry and a path to put before the names).
set -euo pipefail

engine=${ENGINE:?is empty: install podman, buildah or docker}
base=${BASE:?is empty: name the base image}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' egress_proxy/__init__.py)
revision=$(git rev-parse HEAD)$(git diff --quiet HEAD || echo -dirty)

if [[ $base == localhost/* ]] && ! "$engine" inspect --type image "$base" > /dev/null 2>&1; then
    echo "no image $base yet: making it from Debian packages"
    images/base.sh "$base"
fi

options=(--quiet --network none --build-arg "BASE=$base" --build-arg "VERSION=$version"
    --build-arg "REVISION=$revision")
# The commit's own time: two builds of one commit have the same layers. A layer kept from an earlier
# build would have that one's time, and podman takes it for a label's other value too.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
case $engine in
    *docker) options+=(--build-arg "SOURCE_DATE_EPOCH=$epoch") ;;
    *) options+=(--timestamp "$epoch" --layers=false) ;;
esac

for target in egress-dns-proxy egress-router; do
    name=${IMAGE_PREFIX:-}$target
    "$engine" build "${options[@]}" --file Containerfile --target "$target" \
        --tag "$name:$version" --tag "$name:latest" "$@" .
done
