#!/usr/bin/env bash
# The paper's recipe on one GPU. WORKERS=1024 is the paper's own training, played in turn by one process;
# fewer workers are a smaller total batch with its learning rate scaled by the linear rule. A week on a P100
# (jobs/cost_model.py), whatever WORKERS; with 1024 expect the paper's 74.9 % top-1. Started again, it continues.
# Further arguments go to train_imagenet.py. --dry-run prints the command.

# Paths of your site.
TRAIN=${TRAIN:-/data/imagenet/train}
VAL=${VAL:-/data/imagenet/val}
OUT=${OUT:-result/one_gpu}
JOBS=$(dirname "${BASH_SOURCE[0]}")

WORKERS=${WORKERS:-8}

TRAINING=(
    "$TRAIN" "$VAL"
    --out "$OUT"
    --recipe paper
    --batchsize 32
    --virtual-workers "$WORKERS"
    --loaderjob "$(nproc)"
)

# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$JOBS/launch.sh"
launch 1 -- "${TRAINING[@]}" "$@"
