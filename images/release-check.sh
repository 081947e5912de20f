#!/bin/bash
# Lists everything that is missing for a release of this tree.
set -euo pipefail

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' egress_proxy/__init__.py)
head=$(git rev-parse HEAD)
problems=0

problem() {
    echo "$*" >&2
    problems=$((problems + 1))
}

[[ -z $(git status --porcelain) ]] || problem "the tree has uncommitted changes; commit or drop them"

tagged=$(git rev-parse --quiet --verify "refs/tags/v$version^{commit}" || true)
[[ -z $tagged || $tagged == "$head" ]] ||
    problem "v$version is tagged elsewhere; raise __version__ in egress_proxy/__init__.py"

grep --quiet "^## $version (20[0-9-]*)$" CHANGELOG.md ||
    problem "CHANGELOG.md has no dated section '## $version (YYYY-MM-DD)'; write one"

for image in egress-router egress-dns-proxy; do
    name=${IMAGE_PREFIX:-localhost/}$image:$version
    built=$(podman image inspect \
        --format '{{index .Labels "org.opencontainers.image.revision"}}' "$name" 2> /dev/null || true)
    [[ $built == "$head" ]] ||
        problem "$name is of revision ${built:-none}, not $head; run make images"
    [[ -s dist/$image.cdx.json ]] || problem "dist/$image.cdx.json is missing; run make sbom"
done

if ((problems > 0)); then
    exit 1
fi
echo "v$version may be released: git tag --sign v$version"
