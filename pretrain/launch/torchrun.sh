#!/usr/bin/env bash
# One node, all its GPUs (or RANKS processes):   pretrain/launch/torchrun.sh pretrain/demo.py --zero pretrain/zero2.json
# Several nodes, the same line on each:          NODES=2 HEAD=10.0.0.1 pretrain/launch/torchrun.sh ...
#
# SIGTERM reaches every rank through torchrun: the step is finished and saved (torchrun allows 30 s), and the same line goes on.
set -euo pipefail
: "${NODES:=1}" "${RANKS:=gpu}" "${HEAD:=localhost}" "${PORT:=29400}"
exec torchrun --nnodes "$NODES" --nproc-per-node "$RANKS" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" -m vla train "$@" --resume
