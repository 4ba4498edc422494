#!/bin/sh
# Makes .venv and installs the project in it; `make setup` calls this when pyproject.toml or constraints.txt is newer than
# the last complete installation. System packages are installed only where they are missing, so that a second call needs
# no root. It can be interrupted and called again at any point.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=.venv

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || fail "'$PYTHON' is not installed; install Python 3.11 or later, or name one: make setup PYTHON=python3.12"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" --version) is too old; name a Python of at least 3.11: make setup PYTHON=python3.12"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# What our decoder and FFCV's C++ part need to build and run, asked of the tools that will look for it, not of a package manager.
missing=""
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || missing="$missing g++"
command -v pkg-config >/dev/null || missing="$missing pkg-config"
pkg-config --exists opencv4 2>/dev/null || missing="$missing libopencv-dev"
pkg-config --exists libjpeg 2>/dev/null || missing="$missing libjpeg-dev"
pkg-config --exists libturbojpeg 2>/dev/null || missing="$missing libturbojpeg0-dev"
"$PYTHON" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing python$version-dev"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        cat >&2 <<MESSAGE
error: building needs what Debian calls$missing, and there is no apt-get here. Install it, then run this again:
  conda (in an active environment):  conda install -c conda-forge cxx-compiler pkg-config opencv libjpeg-turbo
  brew:                              brew install pkg-config opencv jpeg-turbo
                                     export PKG_CONFIG_PATH="\$(brew --prefix jpeg-turbo)/lib/pkgconfig"
MESSAGE
        exit 1
    fi
    root=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "please have an administrator run: apt-get install$missing"
        root="sudo"
    fi
    say "Installing system packages:$missing (some minutes)"
    $root apt-get update -qq || say "apt-get update failed: trying with the package lists that are here"
    # shellcheck disable=SC2086 # one word a package
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
        fail "apt-get could not install$missing; its message is above"
fi

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # none yet, or an interrupted or moved one
    say "Making $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
fi
say "Installing phasecollapse and what it needs (some minutes the first time)"
"$VENV/bin/python" -m pip install --quiet --use-pep517 -c constraints.txt -e '.[dev,export]'
touch "$VENV/.installed"
say "Ready: $VENV/bin/phasecollapse --help"
