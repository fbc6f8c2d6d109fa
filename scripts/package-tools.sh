#!/bin/sh
# What building and testing the packages needs: scripts/package-tools.sh build|test. As root on Debian, missing tools are
# installed from apt; otherwise says what to install and fails.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }

need strip binutils
if [ "$1" = test ]; then
    need debootstrap debootstrap
    need lintian lintian
    need dpkg-deb dpkg
    need rpm rpm
    need systemd-analyze systemd
    need systemd-nspawn systemd-container
    need mandoc mandoc
    need zsh zsh
    need fish fish
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The packages need:$missing. Install with: sudo apt-get install$missing" >&2
    exit 1
fi
echo "installing$missing"
apt-get -o DPkg::Lock::Timeout=300 update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing
