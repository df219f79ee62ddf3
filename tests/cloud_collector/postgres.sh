#!/bin/sh
# Puts PostgreSQL from Debian under .tools/, without installing it: root is not needed, nothing else changes.
# Needs apt-get and dpkg-deb. Takes along whatever libraries the machine does not have.
set -eu
cd "$(dirname "$0")/../.."
tools="$PWD/.tools"
home="$tools/postgresql"
for bin in "$home"/usr/lib/postgresql/*/bin /usr/lib/postgresql/*/bin; do
    [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && exit 0
done

apt="$tools/apt-postgresql"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
# Lists and cache of our own: those of the machine may be empty, and are not ours to write.
apt() {
    apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::State::lists="$apt/lists" \
        -o Dir::Cache="$apt/cache" "$@"
}
apt update
server=$(apt-cache -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" depends postgresql |
    awk '$1 == "Depends:" && $2 ~ /^postgresql-[0-9]+$/ { print $2 }')
[ -n "$server" ] || { echo "postgres.sh: apt-get offers no postgresql" >&2; exit 1; }
# Not what manages clusters for a whole machine: a test has one of its own.
packages=$(apt --simulate --no-install-recommends install "$server" |
    awk '$1 == "Inst" && $2 !~ /^(postgresql-common|postgresql-client-common|ssl-cert)$/ { print $2 }')
# shellcheck disable=SC2086 # a list of names
(cd "$apt/debs" && apt download $packages)
rm -rf "$home.part"
for deb in "$apt/debs/"*.deb; do
    dpkg-deb --extract "$deb" "$home.part"
done
mv "$home.part" "$home"
rm -rf "$apt"
