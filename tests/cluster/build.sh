#!/bin/bash
# Build Kubernetes from Debian's source package into a cache folder, once: tests/cluster/build.sh
#
# Prints the folder of the programs. It changes nothing on the system: the packages that it needs must
# be there (it names those that are not). Debian 12's package is 1.20.2, with every library in it:
# nothing else is downloaded.
#
# KUBEBUILDER_ASSETS, if set, names a folder with the programs (envtest's convention): no build.
set -euo pipefail

version='1.20.5+really1.20.2-1.1+deb12u1'
programs=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)
# To be raised when what is built changes, so that no cache has the old programs.
revision=1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/egress-proxy

if [[ ${KUBEBUILDER_ASSETS:-} ]]; then
    echo "$KUBEBUILDER_ASSETS"
    exit
fi

assets=$cache/kubernetes-$version-$revision
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
if (cd "$assets" 2>/dev/null && sha256sum --check --quiet SHA256SUMS 1>&2); then
    echo "$assets"
    exit
fi

missing=()
for package in dpkg-dev golang-1.19-go golang-github-modern-go-reflect2-dev patch; do
    [[ $(dpkg-query --show --showformat '${Status}' "$package" 2> /dev/null) == *' installed' ]] ||
        missing+=("$package")
done
if [[ ${missing[*]} ]]; then
    echo "${BASH_SOURCE[0]}: install ${missing[*]} (Debian 12), or set KUBEBUILDER_ASSETS" 1>&2
    exit 1
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
exec 3>&1 1>&2

# Source packages of the places that apt already knows, without a change to its own lists.
mkdir -p "$work"/apt/{parts,lists/partial}
for list in /etc/apt/sources.list.d/debian*.sources; do
    [[ -e $list ]] && sed 's/^Types:.*/Types: deb-src/' "$list" > "$work/apt/parts/${list##*/}"
done
if [[ -e /etc/apt/sources.list ]]; then
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > "$work/apt/parts/debian.list"
fi
apt=(
    apt-get --quiet=2
    --option Dir::Etc::SourceList=/dev/null
    --option "Dir::Etc::SourceParts=$work/apt/parts"
    --option "Dir::State::Lists=$work/apt/lists"
    --option APT::Sandbox::User=
)
"${apt[@]}" update
(cd "$work" && "${apt[@]}" source --download-only "kubernetes=$version")
# apt has checked it against the archive's signature; the patches of Debian come with it.
(cd "$work" && dpkg-source --no-check --extract ./*.dsc source > /dev/null)
tree=$work/source

# reflect2 1.0.1, which is vendored, panics in programs made by Go 1.18 and later.
rm -r "$tree/vendor/github.com/modern-go/reflect2"
cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 "$tree/vendor/github.com/modern-go/"

mkdir -p "$work/go/src/k8s.io"
ln -s "$tree" "$work/go/src/k8s.io/kubernetes"
export GO111MODULE=off GOPATH=$work/go GOCACHE=$work/cache GOFLAGS=-trimpath CGO_ENABLED=0
PATH=/usr/lib/go-1.19/bin:$PATH
cd "$work/go/src/k8s.io/kubernetes"

# The one file that the source lacks, as Makefile.generated_files makes it.
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
typed=$(grep --recursive --files-with-matches --include='*.go' '^// *+k8s:openapi-gen=' \
    pkg staging/src/k8s.io vendor/k8s.io 2>/dev/null |
    sed 's|^staging/src/|vendor/|; s|^|k8s.io/kubernetes/|; s|/[^/]*$||' | sort -u | paste -sd,)
"$work/openapi-gen" --go-header-file hack/boilerplate/boilerplate.generatego.txt \
    --input-dirs "$typed" --output-base "$work/go/src" \
    --output-package k8s.io/kubernetes/pkg/generated/openapi \
    --output-file-base zz_generated.openapi --report-filename "$work/openapi-report"

package=k8s.io/kubernetes/vendor/k8s.io/component-base/version
build_version=(
    "-X $package.gitVersion=v1.20.2" "-X $package.gitMajor=1" "-X $package.gitMinor=20"
    "-X $package.gitTreeState=clean"
)
mkdir "$work/assets"
go build -ldflags "-s -w ${build_version[*]}" -o "$work/assets/" "${programs[@]/#/./cmd/}"

(cd "$work/assets" && sha256sum "${programs[@]}" > SHA256SUMS)
rm -rf "$assets"
mv "$work/assets" "$assets"
echo "$assets" >&3
