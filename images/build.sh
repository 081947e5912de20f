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
# The commit's own time, so that two builds of one commit have the same layers.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

if [[ $base == localhost/* ]] && ! "$engine" inspect --type image "$base" > /dev/null 2>&1; then
    echo "no image $base yet: making it from Debian packages"
    images/base.sh "$base"
fi

case $engine in
    *docker) same_time=(--build-arg "SOURCE_DATE_EPOCH=$epoch") ;;
    *) same_time=(--timestamp "$epoch") ;;
esac

for target in egress-dns-proxy egress-router; do
    name=${IMAGE_PREFIX:-}$target
    "$engine" build --quiet --network none --file Containerfile --target "$target" \
        --build-arg "BASE=$base" --build-arg "VERSION=$version" \
        --build-arg "REVISION=$revision" "${same_time[@]}" \
        --tag "$name:$version" --tag "$name:latest" "$@" .
done
