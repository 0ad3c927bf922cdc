#!/usr/bin/env bash
# Through accelerate, for who has it set up already; it only starts the processes, and no other setting of its configuration counts.
# One node:       RANKS=8 pretrain/launch/accelerate.sh pretrain/demo.py --zero pretrain/zero2.json
# Several, each:  NODES=2 NODE=0 HEAD=10.0.0.1 RANKS=16 pretrain/launch/accelerate.sh ...      (RANKS: of all nodes together)
set -euo pipefail
: "${NODES:=1}" "${NODE:=0}" "${RANKS:=1}" "${HEAD:=127.0.0.1}" "${PORT:=29400}"
many=$([ "$RANKS" -gt 1 ] && echo --multi_gpu || true)
exec accelerate launch $many --num_machines "$NODES" --machine_rank "$NODE" --num_processes "$RANKS" \
  --main_process_ip "$HEAD" --main_process_port "$PORT" --mixed_precision no --dynamo_backend no --module vla train "$@" --resume
