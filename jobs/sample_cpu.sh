#!/usr/bin/env bash
# A real training in minutes on a CPU: the embedded sample set, ResNet-8, RANKS workers of 32 images. This is
# what `make train` runs; some 13 s on two cores, to about 92 % validation accuracy. Started again, it continues,
# or says that it has finished. Further arguments go to train_imagenet.py. --dry-run prints the command.

RANKS=${RANKS:-2}
EPOCHS=${EPOCHS:-12}
JOBS=$(dirname "${BASH_SOURCE[0]}")

# shellcheck source-path=SCRIPTDIR source=launch.sh
source "$JOBS/launch.sh"
launch "$RANKS" -- --epoch "$EPOCHS" "$@"
