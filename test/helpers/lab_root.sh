#!/bin/sh
# Makes the root file system that all hosts of a lab share, once for each version of this file, and prints its path.
#
#   lab_root.sh bookworm|trixie CACHE
#
# Hosts of a lab have no way out of it, so the packages that a play may install wait in the image, in a repository of
# its own. Needs root, mmdebstrap, and apt's sources of this machine, from which the mirror is taken.
set -eu
suite=$1
cache=$2

# What a bare server has that is ready for Ansible: no PostgreSQL.
installed=systemd,systemd-sysv,dbus,openssh-server,iproute2,python3,python3-apt
# What plays may install; trixie's hosts can have bookworm's PostgreSQL beside their own.
offered="postgresql nftables acl"
[ "$suite" = bookworm ] || offered="$offered postgresql-15"

root=$cache/$suite-$(sha256sum "$0" | cut -c 1-12)
mkdir -p "$cache"
exec 9>"$cache/$suite.lock"
flock -w 900 9
if [ -d "$root" ]; then
  echo "$root"
  exit
fi

work=$cache/$suite.partial # Of a killed run, if it is there: we have the lock.
rm -rf --one-file-system "$work"
mkdir "$work"
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [ -s "$sources" ] && break
done
mirror=$work/mirror.${sources##*.}
sed "s/\b$codename\b/$suite/g" "$sources" >"$mirror"
if [ "$suite" != bookworm ]; then
  echo >>"$mirror"
  sed "s/\b$codename\b/bookworm/g" "$sources" >>"$mirror"
fi

cat >"$work/customize" <<'HOOK'
set -eu
root=$1
offered=$2
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install --yes --download-only --no-install-recommends \
  -o APT::Keep-Downloaded-Packages=true $offered
mkdir -p "$root/srv/packages"
mv "$root"/var/cache/apt/archives/*.deb "$root/srv/packages/"
cd "$root/srv/packages"
for package in *.deb; do
  dpkg-deb --field "$package"
  echo "Filename: ./$package"
  echo "Size: $(stat -c %s "$package")"
  echo "SHA256: $(sha256sum "$package" | cut -d ' ' -f 1)"
  echo
done >Packages
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] copy:/srv/packages ./' >"$root/etc/apt/sources.list.d/lab.list"
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf" "$root/etc/hosts" "$root/etc/hostname"
: >"$root/etc/resolv.conf"
mkdir -p "$root/var/log/journal" # Kept over a loss of power.
chroot "$root" apt-get update
passwd --root "$root" --delete root >&2 # sshd lets nobody in without a key all the same.
HOOK

mmdebstrap --mode=root --variant=minbase --format=directory --skip=cleanup/apt/lists \
  --include="$installed" \
  --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --customize-hook="sh '$work/customize' \"\$1\" '$offered'" \
  "$suite" "$work/root" "$mirror" >&2 9>&-
mv "$work/root" "$root"
rm -rf --one-file-system "$work"
echo "$root"
