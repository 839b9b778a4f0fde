#!/bin/sh
# Runs the checks and the test suites, after installing whatever is missing.
#
#   test/run.sh          check, then every suite
#   test/run.sh check    what takes seconds and needs no PostgreSQL: formatting, types, tidy, unit
#   test/run.sh PATH...  these test files or folders only
#
# The last line is "N passed, N failed" or "N passed, N failed, N skipped"; a failed formatter or compiler counts as one.
set -u
cd "$(dirname "$0")/.." || exit 1

say() { printf '%s\n' "$*" >&2; }
give_up() {
  say "$*"
  echo "0 passed, 1 failed"
  exit 1
}

# --- Bun and the packages -----------------------------------------------------------------------------------------
bun=node_modules/.bin/bun
wanted=$(sed -n 's/^ *"bun": "\(.*\)",*$/\1/p' package.json)

has_bun() { [ "$("$bun" --version 2>/dev/null)" = "$wanted" ]; }

install_packages() {
  if ! has_bun; then
    command -v npm >/dev/null || give_up "npm is missing: install Node.js with npm (Debian: apt-get install npm)."
    say "Installing bun $wanted through npm ..."
    npm install --no-package-lock --no-audit --no-fund >&2 || give_up "npm install failed."
    # An npm that does not run install scripts leaves a stub behind.
    has_bun || (cd node_modules/bun && node install.js) >&2
    has_bun || give_up "npm did not bring bun $wanted."
  fi
  # npm chose the versions of indirect dependencies by itself; the lock file has the last word.
  "$bun" install --frozen-lockfile --silent >&2 ||
    "$bun" install --frozen-lockfile >&2 || give_up "bun install failed."
}

# --- PostgreSQL's programs ----------------------------------------------------------------------------------------
has_postgres() {
  command -v pg_ctl >/dev/null && return 0
  if command -v pg_config >/dev/null; then
    [ -x "$(pg_config --bindir)/pg_ctl" ] && return 0
  fi
  for program in /usr/lib/postgresql/*/bin/pg_ctl /usr/pgsql-*/bin/pg_ctl \
    /opt/homebrew/opt/postgresql*/bin/pg_ctl /usr/local/opt/postgresql*/bin/pg_ctl; do
    [ -x "$program" ] && return 0
  done
  return 1
}

install_postgres() {
  has_postgres && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    give_up "PostgreSQL's programs are missing: install a server of version 13 or later (Debian: apt-get install postgresql)."
  fi
  say "Installing PostgreSQL ..."
  {
    apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql-common
  } >&2 || give_up "apt-get could not install postgresql-common."
  # The package would create and start a server of its own on port 5432.
  mkdir -p /etc/postgresql-common/createcluster.d
  no_cluster=/etc/postgresql-common/createcluster.d/no-main-cluster.conf
  echo "create_main_cluster = false" >"$no_cluster"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2
  rm -f "$no_cluster"
  has_postgres || give_up "apt-get could not install PostgreSQL."
}

# --- Network namespaces -------------------------------------------------------------------------------------------
# Where they can't be had, the tests that need them are skipped and say why.
install_netns() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
  command -v ip >/dev/null && command -v nft >/dev/null && command -v nsenter >/dev/null && return
  say "Installing ip, nft and nsenter ..."
  {
    apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 nftables util-linux
  } >&2 || say "apt-get could not install iproute2, nftables and util-linux."
}

# --- Disks and clocks of chaos --------------------------------------------------------------------------------------
install_disks() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
  command -v mkfs.ext4 >/dev/null && command -v losetup >/dev/null && command -v faketime >/dev/null && return
  say "Installing e2fsprogs, mount and faketime ..."
  {
    apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends e2fsprogs mount faketime
  } >&2 || say "apt-get could not install e2fsprogs, mount and faketime."
}

# --- HAProxy --------------------------------------------------------------------------------------------------------
# Its tests, too, are skipped and say why where it can't be had.
install_haproxy() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
  command -v haproxy >/dev/null && return
  say "Installing HAProxy ..."
  {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy
  } >&2 || say "apt-get could not install haproxy."
}

# --- Hosts for Ansible ----------------------------------------------------------------------------------------------
# Where they can't be booted, their tests are skipped and say why.
install_lab() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
  command -v systemd-nspawn >/dev/null && command -v mmdebstrap >/dev/null && command -v ssh >/dev/null &&
    command -v ansible-playbook >/dev/null && return
  say "Installing systemd-nspawn, mmdebstrap, ssh and Ansible ..."
  {
    apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        systemd-container mmdebstrap openssh-client ansible
  } >&2 || say "apt-get could not install systemd-container, mmdebstrap, openssh-client and ansible."
}

# --- Running and counting -----------------------------------------------------------------------------------------
passed=0
failed=0
skipped=0
work=$(mktemp -d) || exit 1
memory=
trap 'rm -rf "$work" $memory' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The tests' servers lie in memory where there is room for them (KiB): they share a disk with nobody whose next fsync then
# waits for what another test has copied. Chaos has disks of its own, which fail.
use_memory() {
  [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] || return
  room=$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')
  [ "${room:-0}" -ge 8000000 ] || return
  memory=$(mktemp -d /dev/shm/pgaf-test-XXXXXX) || return
  chmod 1777 "$memory"
  export TMPDIR="$memory" PGAF_TEST_LABS="$memory/labs"
}

# A tool that only says yes or no: one passed or one failed.
tool() {
  name=$1
  shift
  if "$@" >"$work/tool" 2>&1; then
    passed=$((passed + 1))
  else
    cat "$work/tool"
    say "FAILED: $name"
    failed=$((failed + 1))
  fi
}

count() { awk -v what="$1" '$2 == what && $1 ~ /^[0-9]+$/ && NF == 2 { n = $1 } END { print n + 0 }' "$work/suite"; }

# bun test's own counts; a run that ends badly without counting a failure (a crash, a file that can't be loaded) is one.
suite() {
  rm -f "$work/ok"
  { NO_COLOR=1 FORCE_COLOR=0 "$bun" --no-env-file --no-orphans test --timeout 20000 "$@" 2>&1 && : >"$work/ok"; } | tee "$work/suite"
  n=$(count fail)
  [ -e "$work/ok" ] || [ "$n" != 0 ] || n=1
  passed=$((passed + $(count pass)))
  failed=$((failed + n))
  skipped=$((skipped + $(count skip) + $(count todo)))
}

has_tests() { [ -n "$(find "$1" -name '*.test.ts' -print 2>/dev/null | head -n 1)" ]; }

# Suites that need no PostgreSQL, and those that do; a folder that is not there is not run.
check() {
  tool biome "$bun" run --bun biome ci --error-on-warnings .
  tool tsc "$bun" run --bun tsc -p .
  set -- ./test/tidy.test.ts
  for folder in unit scenario model; do
    has_tests "test/$folder" && set -- "$@" "./test/$folder"
  done
  suite --parallel=2 "$@"
}

install_packages
use_memory
case "${1:-}" in
  check) check ;;
  "")
    install_postgres
    install_haproxy
    check
    # Real servers, with directories and ports of their own: two files at a time.
    for folder in db integration; do
      has_tests "test/$folder" && suite --parallel=2 "./test/$folder"
    done
    if [ "$(id -u)" = 0 ] && has_tests test/netns; then
      install_netns
      suite --parallel=2 ./test/netns
      # Before hosts are booted that would keep its disks mounted.
      install_disks
    fi
    suite ./test/chaos
    install_lab
    suite --parallel=2 ./test/ansible/bookworm.test.ts ./test/ansible/local.test.ts
    ;;
  *)
    install_postgres
    case "$*" in *netns* | *chaos*) install_netns ;; esac
    case "$*" in *chaos*) install_disks ;; esac
    case "$*" in
      *test/ansible | *test/ansible/ | *hosts* | *trixie*)
        install_netns
        install_lab
        ;;
    esac
    case "$*" in *integration*) install_haproxy ;; esac
    suite "$@"
    ;;
esac

skips=
[ "$skipped" = 0 ] || skips=", $skipped skipped"
echo "$passed passed, $failed failed$skips"
[ "$failed" = 0 ]
