#!/usr/bin/env bash
# The paper's run on one node of 8 GPUs: each process plays 128 workers in turn, so the 1024 workers of 32
# images, and with them every number of the training, are the paper's; it takes 128 times as long: a
# day on P100s (jobs/cost_model.py), and the paper's 74.9 % top-1. Started again, it continues. Further arguments
# go to train_imagenet.py. --dry-run prints the command.

# Paths of your site.
TRAIN=${TRAIN:-/data/imagenet/train}
VAL=${VAL:-/data/imagenet/val}
OUT=${OUT:-result/node_8gpu}
JOBS=$(dirname "${BASH_SOURCE[0]}")

GPUS=${GPUS:-8}
WORKERS=1024

CORES=$(nproc)

TRAINING=(
    "$TRAIN" "$VAL"
    --out "$OUT"
    --recipe paper
    --batchsize 32
    --virtual-workers "$((WORKERS / GPUS))"
    --communicator pure_nccl
    --allreduce-grad-dtype float16
    --loaderjob "$((CORES > GPUS ? CORES / GPUS : 1))"  # every core decodes images
    --checkpoint-interval 10                            # an iteration takes half a minute; an epoch has 39
)

# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$JOBS/launch.sh"
launch "$GPUS" -- "${TRAINING[@]}" "$@"
