#!/usr/bin/env bash
# DeepSpeed's launcher, over the hosts in a hostfile ("name slots=8" a line; every host sees this folder and the data at the same path):
#   HOSTFILE=hosts pretrain/launch/deepspeed.sh pretrain/demo.py --zero pretrain/zero3.json
set -euo pipefail
: "${HOSTFILE:=/job/hostfile}"
exec deepspeed --hostfile "$HOSTFILE" --no_local_rank --module vla train "$@" --resume
