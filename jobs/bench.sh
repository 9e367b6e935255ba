#!/usr/bin/env bash
# Measures the parts whose speed matters, against what else could do their work, as ratios within one run:
# the optimizer's update, the exchange of gradients on 2 and 4 ranks, and the input. `make bench` runs it.
# PHOTOGRAPHS, a directory of JPEG files, replaces the generated ones.

JOBS=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$JOBS/environment.sh"
set_environment
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
set -e

"$PYTHON" "$JOBS/bench_optimizer.py"
for ranks in 2 4; do
    echo
    "$MPIRUN" --oversubscribe --bind-to none -np "$ranks" "$PYTHON" "$JOBS/bench_exchange.py"
done
echo
"$PYTHON" "$JOBS/bench_input.py" ${PHOTOGRAPHS:+"$PHOTOGRAPHS"}
