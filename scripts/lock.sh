#!/bin/sh
# Writes requirements/constraints-VERSION.txt for each supported Python: the versions that `make setup` installs. Ranges stand
# in pyproject.toml. Versions that are locked already stay, unless pyproject.toml excludes them; --upgrade renews them all.
#
#   scripts/lock.sh [--upgrade]
#
# The files name no index and no hashes: builds of torch differ from index to index. CUDA's packages and triton are left out,
# as they belong to the build of torch that an index offers.
set -eu
cd "$(dirname "$0")/.."
for version in 3.11 3.12 3.13; do
    file="requirements/constraints-$version.txt"
    .venv/bin/uv pip compile pyproject.toml --all-extras --python-version "$version" --python-platform linux --quiet \
        --no-header --no-annotate --no-emit-index-url --output-file "$file" "$@" >/dev/null
    grep -viP '^(nvidia-(?!ml-py)|cuda-|triton)' "$file" >"$file.partial"
    mv "$file.partial" "$file"
    echo "$file: $(wc -l <"$file") packages"
done
