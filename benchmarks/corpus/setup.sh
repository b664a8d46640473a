#!/usr/bin/env bash
# The peers of this benchmark in one virtual environment, .venv-bench-corpus beside .venv: benchmarks/corpus/setup.sh
# text-dedup without Spark, Sphinx and what else its MinHash never imports; xxhash below 4, which datatrove 0.10 needs.
#   PYTHON        the CPython 3.11 to use (default: python3.11)
#   setup.sh lock makes peers.txt again (needs uv on PATH and a network)
set -euo pipefail
cd "$(dirname "$0")/../.."
here=benchmarks/corpus
asks="datatrove==0.10.1 spacy==3.8.18 orjson tokenizers regex pyarrow xxhash<4 datasets click click-option-group scipy rich ftfy bitarray setuptools"
if [ "${1:-}" = lock ]; then
    printf '%s\n' $asks | uv pip compile --quiet --no-config --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-header --no-emit-index-url --no-emit-find-links --no-annotate --output-file "$here/peers.txt" -
    echo "text-dedup==0.4.0" >> "$here/peers.txt"
    exit 0
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
venv=.venv-bench-corpus stamp=.venv-bench-corpus/.made-from
wanted="$(sha256sum < "$here/peers.txt" | cut -c1-16)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then echo "setup: $venv is what the lock says"; exit 0; fi
"${PYTHON:-python3.11}" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --no-deps -r "$here/peers.txt"
printf '%s' "$wanted" > "$stamp"
echo "setup: $venv takes $(du -sh "$venv" | cut -f1)"
