#!/usr/bin/env bash
# Everything a fresh clone needs, into .venv and .cache of the clone: no root, no account. Called by `make setup`.
# Does nothing, in under a second, when what is installed is what the locks say.
#   PYTHON           the CPython 3.11 to use (default: python3.11, else a python3 that is one)
#   TORCH_INDEX_URL  where torch==2.13.0 comes from (default: pip's configured index), for example PyTorch's own CUDA index
#   FINETUNE_HOME    where fetched packages and built models are kept (default: .cache in the clone)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
is_311() { command -v "$1" >/dev/null && "$1" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do is_311 "$candidate" && { python=$candidate; break; }; done
    [ -n "$python" ] || fail "needs CPython 3.11, and none of python3.11, python3, python is one. Install it, or type: make setup PYTHON=/path/to/python3.11"
fi
is_311 "$python" || fail "PYTHON=$python is not CPython 3.11 ($("$python" --version 2>&1 || echo 'it does not run'))"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments (Debian: apt-get install python3-venv)"

home=${FINETUNE_HOME:-.cache}
wanted=$(cat requirements/train.txt requirements/dev.txt pyproject.toml finetune/wheels.py finetune/embedded.py scripts/setup.sh | sha256sum | cut -c1-16)
wanted="$wanted ${TORCH_INDEX_URL:-default} $home"
stamp=.venv/.finetune-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x .venv/bin/finetune ] && [ -d "$home/models" ]; then
    echo "setup: nothing to do (.venv and $home are what the locks say)"
    exit 0
fi

for tool in g++ git; do command -v $tool >/dev/null || fail "needs $tool (Debian: apt-get install g++ git)"; done
SECONDS=0; since=0
step() { printf '  %4d s  %s\n' $((SECONDS - since)) "$*"; since=$SECONDS; }
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
pip() { quiet_pip "$@" || fail "pip $* failed: read the lines above"; }
# pip warns about every index directory that lacks a package; only errors are worth a reader's time.
quiet_pip() { .venv/bin/python -m pip "$@" --quiet 2> >(grep -v '^WARNING: Location' >&2); }

echo "setup: about 2 to 4 minutes, once. Python: $("$python" --version) at $(command -v "$python")"
[ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
rm -f "$stamp"
step "virtual environment .venv"
# What builds the packages that are published as sources only; pinned by the same lock, so no second download sneaks in.
.venv/bin/python - requirements/train.txt > .venv/build-requirements.txt <<'PY'
import re, sys
text = open(sys.argv[1], encoding="utf-8").read()
for name in ("setuptools", "wheel", "packaging"):
    print(re.search(rf"(?m)^{name}==.*(?:\\\n +--hash.*)+", text).group(0))
PY
pip install --no-deps --require-hashes -r .venv/build-requirements.txt
pip install --no-deps --require-hashes --no-build-isolation -r requirements/train.txt -r requirements/dev.txt
step "$(grep -c '==' requirements/train.txt) locked packages, and those of requirements/dev.txt"
# torch last: what it needs is there by now, so this brings torch and, from a CUDA index, NVIDIA's own wheels.
pip install torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
step "torch $(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')"
pip install --no-deps --no-build-isolation --editable .
step "this project (editable)"
.venv/bin/python -m finetune.embedded || fail "the embedded model could not be made"
step "the embedded model"
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
printf '%s' "$wanted" > "$stamp.new"
mv "$stamp.new" "$stamp"
echo "setup: done in $SECONDS s; the environment is $(du -sh .venv | cut -f1), the models $(du -sh "$home" | cut -f1)"
