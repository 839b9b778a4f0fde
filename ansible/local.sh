#!/bin/sh
# npm run local -- [up|down|status] [options of ansible-playbook]
# Installs what is missing (npm packages with Bun, Ansible), then runs the play for this machine.
set -eu
cd "$(dirname "$0")/.."

fail() { # message, hint
  printf 'error local "%s"\n  hint: %s\n' "$1" "$2" >&2
  exit 2
}
has() { command -v "$1" >/dev/null 2>&1; }
say() { printf '%s\n' "$*" >&2; }

case "${1-up}" in
  up) playbook=local.yml ;;
  down) playbook=local_down.yml ;;
  status) playbook=local_status.yml ;;
  -h | --help)
    echo 'npm run local -- [up|down|status] [-e NAME=VALUE]... [other options of ansible-playbook]'
    echo 'The names and their defaults: ansible/group_vars/local.yml'
    exit 0 ;;
  -*) playbook=local.yml ;;
  *) fail "unknown command $1" 'Use up (or nothing), down or status.' ;;
esac
case "${1-}" in up | down | status) shift ;; esac

# Bun would keep a cache in the home directory.
export BUN_RUNTIME_TRANSPILER_CACHE_PATH=0

# Every package of package.json is there in its version, and Bun runs (npm may have been told to leave its install script out).
packages_are_there() {
  node_modules/.bin/bun -e '
    const { dependencies, devDependencies } = await Bun.file("package.json").json();
    for (const [name, version] of Object.entries({ ...dependencies, bun: devDependencies.bun })) {
      if ((await Bun.file(`node_modules/${name}/package.json`).json()).version !== version) process.exit(1);
    }' >/dev/null 2>&1
}
if ! packages_are_there; then
  say 'Installing the npm packages, Bun among them ...'
  has npm || fail 'npm is missing' 'Install Node.js with npm, e.g. apt-get install npm.'
  npm install --no-package-lock --no-audit --no-fund --loglevel=error >&2
  packages_are_there || (cd node_modules/bun && node install.js)
  packages_are_there || fail 'the npm packages are not complete' 'Run npm install --no-package-lock and see what it says.'
fi

install_with_apt() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }
if ! has ansible-playbook; then
  say 'Installing Ansible, about half a minute ...'
  if [ "$(uname -s)" = Darwin ] && has brew; then
    brew install ansible >&2
  elif [ "$(id -u)" = 0 ] && has apt-get; then
    install_with_apt ansible 2>/dev/null || { apt-get update -qq && install_with_apt ansible; }
  elif [ "$(id -u)" = 0 ] && has dnf; then
    dnf install -q -y ansible-core >&2
  else
    fail 'Ansible is missing' 'Install it first, e.g. sudo apt-get install ansible (root and Homebrew get it by themselves).'
  fi
fi

# Ansible keeps its files in the home directory otherwise, and refuses to start without UTF-8.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export ANSIBLE_CONFIG="$PWD/ansible/ansible.cfg" ANSIBLE_HOME="$scratch" \
  ANSIBLE_LOCAL_TEMP="$scratch/local" ANSIBLE_REMOTE_TEMP="$scratch/remote"
[ "$(locale charmap 2>/dev/null)" = UTF-8 ] || export LC_ALL=C.UTF-8

# Paths in the closing lines are short when the caller stands in the clone.
if [ "${INIT_CWD-}" = "$PWD" ]; then set -- -e local_here= "$@"; fi
ansible-playbook -i ansible/inventory/local.yml "ansible/$playbook" -e "local_report=$scratch/report" "$@"
if [ -f "$scratch/report" ]; then cat "$scratch/report"; fi
