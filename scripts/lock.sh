#!/usr/bin/env bash
# Makes requirements/*.txt again after a dependency changed: scripts/lock.sh [train|dev|serve|quantise ...] (default: all)
# Needs uv on PATH and a network. The locks hold for CPython 3.11 on Linux x86-64; their hashes cover every wheel of a version.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {  # compile OUTPUT INPUT... [-- MORE OPTIONS]
    local output=requirements/$1.txt; shift
    uv pip compile --quiet --no-config --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
        --no-header --no-emit-index-url --no-emit-find-links --annotation-style line \
        --overrides requirements/exclude.txt --output-file "$output" "$@"
    echo "$output: $(grep -c '==' "$output") packages"
}

for lock in "${@:-train dev serve quantise}"; do for name in $lock; do
    case $name in
        train) compile train pyproject.toml requirements/torch.in ;;
        # What the tests need on top of train.txt, at versions that agree with it.
        dev) compile dev requirements/dev.in --constraints requirements/train.txt ;;
        serve) compile serve requirements/serve.in ;;
        quantise) compile quantise requirements/quantise.in ;;
        *) echo "lock.sh: no lock is called '$name': train, dev, serve, quantise" >&2; exit 2 ;;
    esac
done; done
