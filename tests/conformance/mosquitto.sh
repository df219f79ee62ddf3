#!/bin/sh
# Puts a Mosquitto broker from Debian under .tools/, without installing it: root is not needed, nothing else changes.
# Needs apt-get and dpkg-deb. Takes along whatever libraries the machine does not have.
set -eu
cd "$(dirname "$0")/../.."
tools="$PWD/.tools"
home="$tools/mosquitto"
[ -x "$home/usr/sbin/mosquitto" ] && exit 0
command -v mosquitto >/dev/null && exit 0
[ -x /usr/sbin/mosquitto ] && exit 0

mkdir -p "$tools/apt/lists/partial" "$tools/apt/cache/archives/partial" "$tools/apt/debs"
# Lists and cache of our own: those of the machine may be empty, and are not ours to write.
apt() {
    apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::State::lists="$tools/apt/lists" \
        -o Dir::Cache="$tools/apt/cache" "$@"
}
apt update
packages=$(apt --simulate --no-install-recommends install mosquitto | awk '$1 == "Inst" { print $2 }')
[ -n "$packages" ] || { echo "mosquitto.sh: apt-get offers no mosquitto" >&2; exit 1; }
# shellcheck disable=SC2086 # a list of names
(cd "$tools/apt/debs" && apt download $packages)
rm -rf "$home.part"
for deb in "$tools/apt/debs/"*.deb; do
    dpkg-deb --extract "$deb" "$home.part"
done
mv "$home.part" "$home"
rm -rf "$tools/apt"
