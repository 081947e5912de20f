#!/bin/bash
# Writes the bill of materials of both images to dist/IMAGE.cdx.json.
set -euo pipefail

mkdir -p dist
for image in egress-router egress-dns-proxy; do
    podman run --rm --interactive --network none --read-only \
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
        --entrypoint python3 "${IMAGE_PREFIX:-localhost/}$image" - "$image" \
        < images/sbom.py > "dist/$image.cdx.json"
done
