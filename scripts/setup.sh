#!/bin/sh
# Makes .venv and installs the project in it; `make setup` calls this when pyproject.toml or the locked versions are
# newer than the last complete installation. System packages are installed only where they are missing, so that a second
# call needs no root. It can be interrupted and called again at any point.
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

constraints="requirements/constraints-$version.txt"
[ -f "$constraints" ] || fail "Python $version has no locked versions ($constraints); name one of 3.11 to 3.13: make setup PYTHON=python3.12"

# What the decoder needs to build, and what stock FFCV (the extra `ffcv`) needs beyond that. The tools that will look for it
# are asked, not a package manager.
missing=""
command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null || missing="$missing gcc"
command -v pkg-config >/dev/null || missing="$missing pkg-config"
pkg-config --exists libjpeg 2>/dev/null || missing="$missing libjpeg-dev"
"$PYTHON" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing python$version-dev"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"
missing_for_ffcv=""
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || missing_for_ffcv="$missing_for_ffcv g++"
pkg-config --exists opencv4 2>/dev/null || missing_for_ffcv="$missing_for_ffcv libopencv-dev"
pkg-config --exists libturbojpeg 2>/dev/null || missing_for_ffcv="$missing_for_ffcv libturbojpeg0-dev"

# The browser in which tests look at MLflow's pages. Without it they are skipped, so that its installation may fail.
browser=""
command -v chromium >/dev/null || browser="chromium"

extras="dev,export,docs,server,ffcv"
if [ -n "$missing$missing_for_ffcv" ] && command -v apt-get >/dev/null; then
    root=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "please have an administrator run: apt-get install$missing$missing_for_ffcv"
        root="sudo"
    fi
    say "Installing system packages:$missing$missing_for_ffcv (some minutes)"
    $root apt-get update -qq || say "apt-get update failed: trying with the package lists that are here"
    # shellcheck disable=SC2086 # one word a package
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing $missing_for_ffcv >/dev/null ||
        fail "apt-get could not install$missing$missing_for_ffcv; its message is above"
elif [ -n "$missing" ]; then
    cat >&2 <<MESSAGE
error: building needs what Debian calls$missing, and there is no apt-get here. Install it, then run this again:
  conda (in an active environment):  conda install -c conda-forge c-compiler pkg-config libjpeg-turbo
  brew:                              brew install pkg-config jpeg-turbo
                                     export PKG_CONFIG_PATH="\$(brew --prefix jpeg-turbo)/lib/pkgconfig"
MESSAGE
    exit 1
elif [ -n "$missing_for_ffcv" ]; then
    extras="dev,export,docs,server"
    say "Stock FFCV is left out: it needs what Debian calls$missing_for_ffcv. Only --reader ffcv and data.reader=ffcv need it."
fi

if [ -n "$browser" ] && command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }; then
    root=""
    [ "$(id -u)" -eq 0 ] || root="sudo"
    say "Installing $browser, for the tests of MLflow's pages (about half a minute)"
    { [ -n "$missing$missing_for_ffcv" ] || $root apt-get update -qq; } &&
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$browser" >/dev/null ||
        say "There is no $browser: the tests of MLflow's pages are skipped"
elif [ -n "$browser" ]; then
    say "There is no $browser: the tests of MLflow's pages are skipped"
fi

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # none yet, or an interrupted or moved one
    say "Making $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
fi
say "Installing phasecollapse and what it needs (some minutes the first time)"
"$VENV/bin/python" -m pip install --quiet --use-pep517 -c "$constraints" -e ".[$extras]"
touch "$VENV/.installed"
say "Ready: $VENV/bin/phasecollapse --help"
