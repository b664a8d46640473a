#!/usr/bin/env bash
# One virtual environment for each peer, pinned: benchmarks/train/setup.sh llamafactory [axolotl] [ms-swift]
# They contradict our own environment and each other, so each is .venv-bench-<peer> beside .venv.
# torchvision and torchaudio stay out: PyPI has only builds linked against CUDA, which fail to import on a CPU.
#   PYTHON           the CPython 3.11 to use (default: python3.11)
#   TORCH_INDEX_URL  where torch==2.13.0 comes from (default: pip's configured index)
#   `setup.sh lock`  makes locks/*.txt again (needs uv on PATH and a network)
set -euo pipefail
cd "$(dirname "$0")/../.."
here=benchmarks/train
declare -A asks=([llamafactory]="llamafactory==0.9.5" [axolotl]="axolotl==0.19.0" [ms-swift]="ms-swift==4.6.0")

if [ "${1:-}" = lock ]; then
    for name in "${!asks[@]}"; do
        echo "${asks[$name]}" | uv pip compile --quiet --no-config --python-version 3.11 \
            --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links --no-annotate \
            --overrides requirements/exclude.txt --output-file "$here/locks/$name.txt" -
    done
    exit 0
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
for name in "${@:-llamafactory}"; do
    [ -f "$here/locks/$name.txt" ] || { echo "setup: no peer is called '$name': ${!asks[*]}" >&2; exit 2; }
    venv=.venv-bench-$name stamp=.venv-bench-$name/.made-from
    wanted="$(sha256sum < "$here/locks/$name.txt" | cut -c1-16) ${TORCH_INDEX_URL:-default}"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then echo "setup: $venv is what the lock says"; continue; fi
    "${PYTHON:-python3.11}" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --no-compile setuptools wheel
    "$venv/bin/pip" install --quiet --no-compile --no-deps --no-build-isolation -r "$here/locks/$name.txt"
    "$venv/bin/pip" install --quiet --no-compile --no-warn-conflicts torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    case $name in
        # It is imported for audio at every start and never called for text.
        llamafactory) echo '"""Stands in for torchaudio, whose builds want CUDA."""' > "$venv/lib/python3.11/site-packages/torchaudio.py" ;;
        # Imported at every start as well; its kernels are not used on a CPU.
        axolotl) "$venv/bin/pip" install --quiet --no-compile --no-deps triton==3.7.1 ;;
    esac
    "$venv/bin/python" -W ignore -m compileall -qq -x '/tests?/' "$venv/lib" || true
    printf '%s' "$wanted" > "$stamp"
    echo "setup: $venv takes $(du -sh "$venv" | cut -f1)"
done
