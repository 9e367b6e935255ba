#!/usr/bin/env bash
# Run train_imagenet.py on RANKS ranks, stop it in good order, start it again when it asks for that.
#
#   jobs/launch.sh [--dry-run] RANKS [mpirun option ...] -- [train_imagenet.py option ...]
#
# One rank without mpirun options runs without mpirun. RANKS_PER_NODE, when set, says that the job spans
# nodes. A script that has something to do afterwards sources this file and calls `launch` with the same
# arguments.
#
# * SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGUSR1 to this script becomes SIGUSR1 to mpirun, which passes it to
#   every rank: they write a checkpoint and exit with 75. (SIGTERM to mpirun itself would kill the ranks
#   unasked.) A second Ctrl-C ends the ranks at once, without a checkpoint.
# * Status 75 after such a signal is passed on: start again later, with the same command.
# * Status 75 without one (a rank was told to stop, this script was not) starts the job again.
# * 0 counts if the run has left its mark, --out's `finished`: mpirun says 0 too when it has lost a host in the
#   middle. Without the mark the status is 1.
# * Any other status is passed on.
#
# Every start continues what is in --out (--resume auto), the first one only if neither --resume nor --force
# says otherwise.
#
# --dry-run, or DRY_RUN=1, prints the command and exits.

# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

EXIT_STOPPED=75
MARK=finished
REMIND_SECONDS=10

ASKED=          # first signal that this script was sent; empty while there was none
_interruptions=0
_pid=           # mpirun, while it runs
_began=         # when it was started
_last_word=TERM # what ends the ranks at once
_reminder=

# mpirun drops a signal that arrives between its own start and its ranks'. Repeating it does no harm: a rank
# that has a handler remembers that it was asked, one that has none yet has nothing to lose.
_pass_on() {
    [[ -n $_pid && -z $_reminder ]] || return 0
    local pid=$_pid
    kill -USR1 "$pid" 2>/dev/null
    (trap - TERM INT HUP USR1; while sleep "$REMIND_SECONDS" && kill -USR1 "$pid"; do :; done) &>/dev/null &
    _reminder=$!
}

_ask() {
    _interruptions=$((_interruptions + 1))
    if [[ -z $ASKED ]]; then
        ASKED=$1
        echo "launch: SIG$1: asking the ranks to write a checkpoint and stop" >&2
        _pass_on
    elif [[ $1 == INT && -n $_pid ]]; then
        echo 'launch: second interrupt: ending the ranks without a checkpoint' >&2
        kill "-$_last_word" "$_pid" 2>/dev/null
    fi
}

# Remove what Open MPI leaves on this host of a job that was killed, and ended with this status: mpirun's
# directory, and the ranks' shared memory, once no process has it any more.
_sweep() {
    local segment
    case $1 in 0|2|"$EXIT_STOPPED") return ;; esac
    for _ in {1..20}; do
        pgrep -s "$_pid" >/dev/null || break
        sleep 0.5
    done
    rm -rf "${TMPDIR:-/tmp}/ompi.$_pid"
    for segment in /dev/shm/sm_segment.*."$UID".*; do
        [[ -O $segment && $(stat -c %Y "$segment") -ge $_began ]] || continue
        grep -qsF "$segment" /proc/[0-9]*/maps || rm -f "$segment"
    done
}

# Run one command to its end and return its status, whatever signals interrupt the waiting.
_run() {
    local before status
    # In a session of its own: Ctrl-C at a terminal, and qdel, reach every process of the group or session,
    # and would end mpirun before this script has spoken to it. setsid does not fork here, so $! is the
    # command.
    _began=$(date +%s)
    setsid "$@" &
    _pid=$!
    [[ -z $ASKED ]] || _pass_on
    while :; do
        before=$_interruptions
        wait "$_pid"
        status=$?
        [[ $before == "$_interruptions" ]] && break
    done
    _sweep "$status"
    _pid=
    if [[ -n $_reminder ]]; then
        kill "$_reminder" 2>/dev/null
        _reminder=
    fi
    return "$status"
}

launch() {
    local dry_run=${DRY_RUN:-0} ranks version argument name status
    local arguments=() mpirun_options=() training=() command=() resume=(--resume auto)
    local out=result trains=1 before=  # --out as train_imagenet.py understands it

    for argument in "$@"; do
        if [[ $argument == --dry-run ]]; then dry_run=1; else arguments+=("$argument"); fi
    done
    set -- ${arguments[@]+"${arguments[@]}"}

    ranks=${1:-}
    if [[ ! $ranks =~ ^[1-9][0-9]*$ ]]; then
        echo "launch: '$ranks' ranks: expected a positive number;" \
             'usage: launch.sh RANKS [mpirun options] -- [training options]' >&2
        return 2
    fi
    shift
    while (($#)) && [[ $1 != -- ]]; do
        mpirun_options+=("$1")
        shift
    done
    (($# == 0)) || shift
    for argument in "$@"; do
        case $argument in --force|--resume|--resume=*|-r*) resume=() ;; esac
        case $argument in --plan|--help|-h) trains=0 ;; esac
        case $before in --out|-o) out=$argument ;; esac
        case $argument in
            --out=*) out=${argument#--out=} ;;
            -o?*) out=${argument#-o} out=${out#=} ;;
        esac
        before=$argument
        # Started again, a job that began with --force would throw away the checkpoint to start from.
        [[ $argument == --force ]] || training+=("$argument")
    done

    set_environment
    if ((ranks == 1 && ${#mpirun_options[@]} == 0)); then
        command=("$PYTHON")
        _last_word=KILL
    else
        if [[ ! -x $(command -v "${MPIRUN:-}") ]]; then
            echo "launch: no mpirun '${MPIRUN:-}' beside $PYTHON or on PATH:" \
                 "install the extra 'mpi', load the site's MPI, or set MPIRUN" >&2
            return 2
        fi
        command=("$MPIRUN" -np "$ranks")
        version=$("$MPIRUN" --version 2>&1)
        if [[ $version == *'Open MPI'* ]]; then
            # A rank shares its node's cores with its image loaders; bound to one core, all of them would
            # starve.
            command+=(--bind-to none)
            # On one machine more ranks than cores is a choice, across nodes it is a mistake.
            [[ -n ${RANKS_PER_NODE:-} ]] || command+=(--oversubscribe)
            for name in "${EXPORTED[@]}"; do command+=(-x "$name"); done
        fi
        command+=(${mpirun_options[@]+"${mpirun_options[@]}"} "$PYTHON")
    fi
    command+=("$ROOT/train_imagenet.py")

    if [[ $dry_run != 0 ]]; then
        for name in "${EXPORTED[@]}"; do printf '%s=%q ' "$name" "${!name}"; done
        printf '%q ' "${command[@]}" "$@" ${resume[@]+"${resume[@]}"}
        echo
        return 0
    fi

    # The mark of a run that --force gives up must not speak for this one.
    [[ $trains == 0 || ${#training[@]} == $# ]] || rm -f "$out/$MARK"
    trap '_ask TERM' TERM
    trap '_ask INT' INT
    trap '_ask HUP' HUP
    trap '_ask USR1' USR1
    _run "${command[@]}" "$@" ${resume[@]+"${resume[@]}"}
    status=$?
    while [[ $status == "$EXIT_STOPPED" && -z $ASKED ]]; do
        echo 'launch: stopped with a checkpoint, and nobody asked this script: starting again' >&2
        # A rank 0 that was cut off holds --out until it ends itself.
        _run "${command[@]}" ${training[@]+"${training[@]}"} --resume auto --wait
        status=$?
    done
    # A rank asked before it had its handler dies of the signal (Open MPI says 128 + 10, MPICH says 10):
    # nothing was trained since the last checkpoint.
    if [[ -n $ASKED && ( $status == 138 || $status == 10 ) ]]; then status=$EXIT_STOPPED; fi
    if [[ $status == 0 && $trains == 1 && ! -e $out/$MARK ]]; then
        echo "launch: status 0, but the run has left no $out/$MARK: ranks were lost, or $(hostname) does not" \
             "see that directory; start again to continue" >&2
        status=1
    fi
    return "$status"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    launch "$@"
    exit
fi
