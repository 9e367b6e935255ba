#!/usr/bin/env bash
# Measures the parts whose speed matters, against what else could do their work, as ratios within one run:
# a training step, the optimizer's update, the exchange of gradients on 2 and 4 ranks, and the input; and, in
# seconds, a run's start and the end of its epochs on 1 and 4 ranks. `make bench` runs it. Takes four minutes;
# what to expect is in README.md, "Measured". PHOTOGRAPHS, a directory of JPEG files, replaces the generated ones.

# shellcheck source-path=SCRIPTDIR source=../environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
set_environment
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
set -e
PHOTOGRAPHS=${PHOTOGRAPHS:+$(realpath "$PHOTOGRAPHS")}
cd "$ROOT"

"$PYTHON" -m jobs.bench.step
echo
"$PYTHON" -m jobs.bench.optimizer
for ranks in 2 4; do
    echo
    "$MPIRUN" --oversubscribe --bind-to none -np "$ranks" "$PYTHON" -m jobs.bench.exchange
done
echo
"$PYTHON" -m jobs.bench.input ${PHOTOGRAPHS:+"$PHOTOGRAPHS"}

# Of 40 iterations each, with 60 images in one.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for ranks in 1 4; do
    echo
    "$MPIRUN" --oversubscribe --bind-to none -np "$ranks" "$PYTHON" -m jobs.bench.epoch \
        --batchsize $((60 / ranks)) --epoch 8 --out "$scratch/$ranks"
done
