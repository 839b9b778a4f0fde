#!/bin/sh
# Runs the failover tests on another major version of PostgreSQL, as Debian packages it.
#
#   test/versions.sh 17           the failover tests, and those of what works on a server directly
#   test/versions.sh 17 short     those that tell most in little time
#   test/versions.sh 17 PATH...   these test files or folders
#
# Each version's Debian is unpacked once, by mmdebstrap, below PGAF_TEST_CACHE (else XDG_CACHE_HOME, else /var/cache). The
# tests run in it with mounts, processes and a network of their own, which end with the command, however that ends.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
skip() {
  say "PostgreSQL $version is skipped: $*"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
}

paths_of() {
  folder=$1
  shift
  printf "./test/$folder/%s.test.ts " "$@"
}
short="$(paths_of db pg_commands pg_local pg_server) $(paths_of integration walkthrough crashes election quorum) $(paths_of long basebackup)"
long="./test/db ./test/netns $(paths_of integration walkthrough processes crashes election quorum switchover \
  fence security) $(paths_of long basebackup forks recover existing tablespaces)"

mirror_of() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" | head -n 1; }

unpack() {
  suite=$1 packages=$2 root=$3
  mirror=$(mirror_of Debian) security=$(mirror_of Debian-Security)
  [ -n "$mirror" ] || skip "apt's configuration names no mirror of Debian, or apt-get update has never run."
  command -v mmdebstrap >/dev/null || apt-get install -y -qq --no-install-recommends mmdebstrap >&2 ||
    skip "apt-get could not install mmdebstrap."
  mkdir -p "${root%/*}"
  exec 9>"$root.lock"
  flock 9
  [ ! -d "$root" ] || return 0
  say "Unpacking Debian's $suite with PostgreSQL $version into $root ..."
  rm -rf "$root".?????? # of one that was killed
  growing=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$growing"' EXIT
  # The package would make a cluster of its own.
  hook='cd "$1/etc" && mkdir postgresql-common && echo create_main_cluster = false >postgresql-common/createcluster.conf'
  printf 'deb %s main\n' "$mirror $suite" ${security:+"$security $suite-security"} |
    mmdebstrap --quiet --variant=apt --include="$packages" --essential-hook="$hook" \
    --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$growing" - >&2 || { echo "0 passed, 1 failed" && exit 1; }
  mv -T "$growing" "$root"
  exec 9>&-
}

# The first process of the namespaces: it waits for all others, and they end with it.
inside() {
  repository=$PWD
  mount -t tmpfs pgaf /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" pgaf /mnt/root
  shift
  # Not chroot: tests enter mount namespaces, and would come out of it.
  cd /mnt/root
  mount --rbind /dev dev
  mount -t tmpfs pgaf dev/shm
  mount -t tmpfs -o mode=1777 pgaf tmp
  mount -t proc pgaf proc
  mount -t sysfs -o ro pgaf sys
  mkdir -p "./$repository"
  mount --bind "$repository" "./$repository"
  mount -o remount,bind,ro "./$repository"
  pivot_root . mnt
  cd "$repository"
  umount --lazy /mnt
  ip link set lo up
  echo "127.0.0.1 localhost" >/etc/hosts
  install -d -m 2775 -o postgres -g postgres /run/postgresql
  sh test/run.sh "$@"
}

version=${1:-}
case $version in
  inside) shift; inside "$@"; exit ;;
  13) suite=bullseye ;; 15) suite=bookworm ;; 17) suite=trixie ;; 18) suite=forky ;;
  *) say "Usage: test/versions.sh 13|15|17|18 [short | PATH...]" && exit 2 ;;
esac
shift
case ${1:-long} in
  long) set -- --parallel=2 $long ;;
  short) set -- --parallel=2 $short ;;
esac
[ "$(id -u)" = 0 ] || skip "a root file system of its own needs root."
packages=postgresql-$version,haproxy,iproute2,mount,nftables,openssl,procps,util-linux
cache=${PGAF_TEST_CACHE:-${XDG_CACHE_HOME:-/var/cache}/pg-auto-failover-test}
root=$cache/versions/$suite-$(printf %s "$packages" | cksum | cut -d ' ' -f 1)
if [ ! -d "$root" ]; then unpack "$suite" "$packages" "$root"; fi
exec env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  unshare --mount --propagation private --pid --fork --kill-child --ipc --net sh test/versions.sh inside "$root" "$@"
