#!/usr/bin/env bash
# One run over several machines without a scheduler: type this on each of them, with the same overrides, within half an hour.
#   MAIN=10.0.0.1 RANK_OF_NODE=0 scripts/launch_nodes.sh recipe=legal machine=a100x8x2      (on the first)
#   MAIN=10.0.0.1 RANK_OF_NODE=1 scripts/launch_nodes.sh recipe=legal machine=a100x8x2      (on the second)
#   NODES             machines (default 2)
#   GPUS              processes on each machine (default: its GPUs)
#   PORT              a free port on the first (default 29500)
# `work` must be a folder that all machines share: PREPARE runs on the first and the others wait for what it publishes.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${MAIN:?launch_nodes.sh: set MAIN to an address of the first machine that the others reach}"
: "${RANK_OF_NODE:?launch_nodes.sh: set RANK_OF_NODE to 0 on the first machine, 1 on the second}"
nodes=${NODES:-2}
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$gpus" -gt 0 ] || { echo "launch_nodes.sh: no GPU was found here; set GPUS to the number of processes on each machine" >&2; exit 2; }

# After SIGTERM the launcher kills what still runs: a step and its checkpoint get more than its 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
PATH="$PWD/.venv/bin:$PATH"
# --multi_gpu is also what starts several processes on CPUs: --cpu would silently start one. DeepSpeed is not named here;
# its one owner is the machine group.
exec accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
    --num_machines "$nodes" --num_processes "$((nodes * gpus))" --machine_rank "$RANK_OF_NODE" \
    --main_process_ip "$MAIN" --main_process_port "${PORT:-29500}" --rdzv_backend static \
    "${ENTRY:-finetune/train.py}" "$@"
