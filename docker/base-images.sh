#!/usr/bin/env bash
# Makes base images on a machine that can't pull any, from Debian's packages: a small Debian with Python, and one with
# Redis. Where images can be pulled this isn't needed: Dockerfile and docker-compose.yml then use the public ones.
#
#     docker/base-images.sh [--force]
#
# Makes agent-orchestra/python:local and agent-orchestra/redis:local, those that don't exist yet; with --force both.
# To use them:
#
#     export PYTHON_IMAGE=agent-orchestra/python:local REDIS_IMAGE=agent-orchestra/redis:local
#     docker-compose build
#
# It needs root (for debootstrap, which it installs where apt-get can) and about a gigabyte below ${TMPDIR:-/var/tmp}.
# DEBIAN_MIRROR and DEBIAN_SECURITY name other mirrors. Certificates that an administrator added to this machine, in
# /usr/local/share/ca-certificates, are trusted in the Python image too: behind a proxy that inspects TLS, pip needs them.
set -euo pipefail

readonly SUITE=bookworm
readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly SECURITY=${DEBIAN_SECURITY:-http://deb.debian.org/debian-security}
readonly OWN_CERTIFICATES=/usr/local/share/ca-certificates
readonly PYTHON=agent-orchestra/python:local
readonly REDIS=agent-orchestra/redis:local
readonly REDIS_ID=999  # the user's number in the public images too: a volume can move from one to the other

fail() {
    echo "base-images: $*" >&2
    exit 1
}

lacks() {
    ! docker image inspect "$1" >/dev/null 2>&1
}

# An empty environment, so that no package is configured by what is set here for somebody else.
inside() {
    local root=$1
    shift
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        "$@" >>"$work/log" 2>&1 || fail "$* failed: $(tail --lines=3 "$work/log")"
}

add_packages() {
    local root=$1
    shift
    inside "$root" apt-get install --yes --no-install-recommends "$@"
}

make_base() {
    local root=$1
    echo "base-images: unpacking Debian $SUITE"
    debootstrap --variant=minbase "$SUITE" "$root" "$MIRROR" >>"$work/log" 2>&1 ||
        fail "debootstrap failed: $(tail --lines=3 "$work/log")"
    cat >"$root/etc/apt/sources.list" <<SOURCES
deb $MIRROR $SUITE main
deb $MIRROR $SUITE-updates main
deb $SECURITY $SUITE-security main
SOURCES
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"  # no service starts here while it's being installed
    chmod 755 "$root/usr/sbin/policy-rc.d"
    inside "$root" apt-get update
    inside "$root" apt-get upgrade --yes
}

make_python() {
    local root=$1
    add_packages "$root" ca-certificates python3 python3-venv
    if [[ -d $OWN_CERTIFICATES ]]; then
        find "$OWN_CERTIFICATES" -name '*.crt' -exec cp {} "$root$OWN_CERTIFICATES/" \;
        inside "$root" update-ca-certificates
    fi
    import_image "$root" "$PYTHON" --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]'
}

make_redis() {
    local root=$1
    inside "$root" groupadd --system --gid "$REDIS_ID" redis
    inside "$root" useradd --system --uid "$REDIS_ID" --gid redis --home-dir /data --no-create-home redis
    add_packages "$root" redis-server
    inside "$root" install --directory --owner=redis --group=redis /data
    import_image "$root" "$REDIS" --change 'WORKDIR /data' --change 'VOLUME /data' --change 'EXPOSE 6379' \
        --change 'USER redis' --change 'CMD ["redis-server"]'
}

import_image() {
    local root=$1 image=$2
    shift 2
    tidy "$root"
    tar --create --directory="$root" --numeric-owner --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . |
        docker import "$@" - "$image" >/dev/null
    echo "base-images: $image, $(($(docker image inspect --format '{{.Size}}' "$image") / 1000000)) MB"
}

# Leave out what no container reads; licences stay.
tidy() {
    local root=$1
    inside "$root" apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/{apt,debconf,ldconfig}/* "$root"/var/log/* "$root"/tmp/* \
        "$root"/usr/share/{man,info,locale,lintian}/* "$root"/etc/{hostname,resolv.conf}
    find "$root/usr/share/doc" ! -type d ! -name copyright -delete
    find "$root/usr/share/doc" -type d -empty -delete
}

case ${1-} in
    "") force=false ;;
    --force) force=true ;;
    *) fail "there is no option $1; usage: docker/base-images.sh [--force]" ;;
esac

docker info >/dev/null 2>&1 || fail "no Docker engine answers; is it running, and may you use it?"
wanted=()
for kind in python redis; do
    image=agent-orchestra/$kind:local
    if $force || lacks "$image"; then
        wanted+=("$kind")
    else
        echo "base-images: $image is there"
    fi
done
((${#wanted[@]})) || exit 0

((EUID == 0)) || fail "debootstrap needs root; run this with sudo"
if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || fail "debootstrap is missing; install it with your system's package manager"
    echo "base-images: installing debootstrap"
    { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends debootstrap; } >/dev/null ||
        fail "apt-get can't install debootstrap"
fi

work=$(mktemp --directory "${TMPDIR:-/var/tmp}/base-images.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
make_base "$work/base"
for kind in "${wanted[@]}"; do
    cp --archive "$work/base" "$work/$kind"
    "make_$kind" "$work/$kind"
done
