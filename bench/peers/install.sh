#!/bin/sh
# Installs the peers that the bench measures itself against, from Debian's packages.
set -eu
packages="bubblewrap crun util-linux iproute2 qemu-system-x86"
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages </dev/null
