#!/usr/bin/env bash
# The tests in groups, cheapest first; every group runs even when an earlier one failed. Called by `make test`.
# scripts/test.sh [lint|fast|slow|distributed|serving|mutations|quantise ...]   (default: the first five)
set -uo pipefail
cd "$(dirname "$0")/.." || exit

home=${FINETUNE_HOME:-$PWD/.cache}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline} OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
export HF_HOME=${HF_HOME:-$home/huggingface} TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$home/torch_extensions}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} MPLBACKEND=Agg PYTHONUNBUFFERED=1
# A build that was killed leaves its lock behind, and DeepSpeed's next build would wait for it for ever.
find "$TORCH_EXTENSIONS_DIR" -name lock -mmin +10 -delete 2>/dev/null

describe() {
    case $1 in
        lint) echo "ruff, and mypy --strict on finetune/ (about 1 minute)" ;;
        fast) echo "tests that train nothing (about 3 minutes)" ;;
        slow) echo "tests that load or train the embedded model (about 15 minutes)" ;;
        distributed) echo "tests that start several processes (about 7 minutes)" ;;
        serving) echo "checkpoints and a bundle in vLLM, in an environment of its own (about 5 minutes, 2 of them to install)" ;;
        mutations) echo "every seeded defect must turn a test red (about 10 minutes)" ;;
        quantise) echo "models in 4 and 8 bit by llm-compressor, read by vLLM (about 3 minutes, and 4 to install both)" ;;
    esac
}

group() {
    case $1 in
        lint) ruff check .; local style=$?; mypy && [ $style -eq 0 ] ;;
        fast) pytest -q -m "not slow and not distributed and not serving and not quantise" --durations=5 ;;
        slow)
            # All seeded defects take ten minutes: a quarter of them here, another one after each commit.
            local part=$(( $(git rev-list --count HEAD 2>/dev/null || echo 0) % 4 ))
            MUTATIONS=$part/4 pytest -q -m "slow and not distributed and not serving and not quantise" --durations=10 ;;
        distributed) OMP_NUM_THREADS=1 pytest -q -m distributed --durations=10 ;;
        serving) scripts/setup.sh serve && pytest -q -m serving tests/serving --durations=10 ;;
        mutations) pytest -q -m slow tests/mutations --durations=10 ;;
        quantise)
            scripts/setup.sh quantise && scripts/setup.sh serve && pytest -q -m quantise tests/quantise --durations=10 ;;
        *) echo "test.sh: no group is called '$1': lint, fast, slow, distributed, serving, mutations, quantise" >&2; return 2 ;;
    esac
}

[ $# -gt 0 ] || set -- lint fast slow distributed serving
failed=(); summary=()
for name in "$@"; do
    printf '\n== %s: %s\n' "$name" "$(describe "$name")"
    SECONDS=0
    group "$name"; code=$?
    # pytest's codes: 1 tests failed, 2 interrupted, 3 internal error, 4 usage error, 5 nothing collected. None of them passes.
    [ $code -eq 5 ] && echo "test.sh: the group '$name' holds no test: a marker was misspelt or its files are gone"
    [ $code -eq 0 ] || failed+=("$name (exit code $code)")
    summary+=("$(printf '%-12s %4d s  %s' "$name" $SECONDS "$([ $code -eq 0 ] && echo passed || echo "FAILED, exit code $code")")")
    [ $code -eq 2 ] && [ "$name" != lint ] && break
done
printf '\n== groups\n'; printf '%s\n' "${summary[@]}"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[*]}"; exit 1; }
