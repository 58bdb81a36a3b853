#!/bin/bash
# Installs the engines that the harness compares with into a directory of their own.
#
#   benches/peers.sh DIR
#
# DIR becomes a Debian trixie tree made by mmdebstrap. Nothing of it lands on the machine itself:
# `amphora-bench --peers DIR` makes the tree the root of a private mount namespace and runs the
# peers there as ordinary programs. The package mirror is the one this machine's apt is
# configured with.
set -euo pipefail

dir=${1:?"usage: peers.sh DIR"}
suite=${PEERS_SUITE:-trixie}
packages=(
    ca-certificates mount iproute2 iptables nftables procps e2fsprogs
    runc podman netavark aardvark-dns conmon crun buildah skopeo umoci
    docker.io docker-cli containerd docker-registry
)
# Peers that not every release carries: installed one by one, a missing one is named and skipped.
optional=(wasmedge docker-buildx docker-compose youki)

if [ -e "$dir/etc/debian_version" ] && [ -x "$dir/usr/bin/crun" ]; then
    echo "peers: $dir is installed already"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "peers: needs root" >&2
    exit 1
fi
command -v mmdebstrap >/dev/null || apt-get install -y --no-install-recommends mmdebstrap

# The main archive of this machine: the index target of the running release without a suffix.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v r="$codename" '$2 == r { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "peers: apt knows no archive for $codename" >&2
    exit 1
fi

include=$(IFS=,; echo "${packages[*]}")
mkdir -p "$dir"
# The packages' services are not to be started: policy-rc.d answers 101.
mmdebstrap --mode=root --variant=apt --include="$include" \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='force-unsafe-io' \
    --essential-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
    "$suite" "$dir" "$mirror"

chroot "$dir" apt-get update -qq
for package in "${optional[@]}"; do
    chroot "$dir" apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "peers: $package is not in $suite, left out"
done

echo "peers: installed in $dir"
chroot "$dir" dpkg-query -W -f '${Package} ${Version}\n' \
    crun runc podman conmon buildah skopeo docker.io containerd docker-registry wasmedge 2>/dev/null
