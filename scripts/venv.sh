#!/bin/sh
# Make a virtual environment: scripts/venv.sh FOLDER. $PYTHON picks the interpreter (3.11 or later); without it the
# first suitable one is taken. Missing packages of a Debian system are installed when we are root.
set -eu
folder=$1

say() { printf '%s\n' "$*" >&2; }

suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        if ! command -v "$PYTHON" >/dev/null 2>&1; then
            say "PYTHON=$PYTHON: no such command"
            return 1
        fi
        if ! suits "$PYTHON"; then
            say "PYTHON=$PYTHON is not Python 3.11 or later"
            return 1
        fi
        printf '%s\n' "$PYTHON"
        return 0
    fi
    for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if suits "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# apt_install PACKAGE...: as root on Debian only; otherwise says what to do.
apt_install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $*"
        apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
            --no-install-recommends "$@" >&2
    else
        say "missing: install it with  apt-get install $*  (as root), then try again"
        return 1
    fi
}

if [ -z "${PYTHON:-}" ] && ! find_python >/dev/null; then
    apt_install python3 python3-venv
fi
python=$(find_python) || { say "no Python 3.11 or later: install one, or name it with make PYTHON=..."; exit 1; }

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian splits them off. For a Python of another origin this cannot help, and says so below.
    apt_install python3-venv
    "$python" -c 'import ensurepip, venv' || { say "$python has no ensurepip: pick another one with make PYTHON=..."; exit 1; }
fi

if [ ! -x "$folder/bin/python" ] || ! suits "$folder/bin/python"; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
fi
# Older ones know no dependency groups.
"$folder/bin/python" -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
