#!/usr/bin/env bash
# Run train_imagenet.py on RANKS ranks, stop it in good order, start it again when it asks for that.
#
#   jobs/launch.sh [--dry-run] RANKS [mpirun option ...] -- [train_imagenet.py option ...]
#
# One rank without mpirun options runs without mpirun. A script that has something to do afterwards sources this
# file and calls `launch` with the same arguments.
#
# RANKS_PER_NODE, when set, says that the job spans hosts, and so does a list of them among mpirun's options:
# --hostfile FILE or --host a,b (MPICH: -f, -hosts). Open MPI's daemons then notice within half a minute that one
# of them is cut off, and the job ends when nothing has moved for five minutes.
#
# * SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGUSR1 to this script becomes SIGUSR1 to mpirun, as soon as the ranks
#   have joined, and it passes it to every rank: they write a checkpoint and exit with 75. (SIGTERM to mpirun
#   itself would kill the ranks unasked.) A second Ctrl-C ends the ranks at once, without a checkpoint.
# * Status 75 after such a signal is passed on: start again later, with the same command.
# * Status 75 without one (a rank was told to stop, this script was not) starts the job again.
# * 0 counts if the run has left its mark, --out's `finished`: mpirun says 0 too when it has lost a host in the
#   middle. Without the mark the status is 1.
# * Any other status but 2 starts the job again, at most three times, if hosts of the list do not answer (nor more
#   than half): on those that do, with as many workers as before (--workers). Every start asks all of them anew.
# * Any other status is passed on.
# * If this script is killed, mpirun gets SIGUSR1.
#
# Every start continues what is in --out (--resume auto), the first one only if neither --resume nor --force
# says otherwise.
#
# --dry-run, or DRY_RUN=1, prints the command and exits.

# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=hosts.sh
source "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"

EXIT_STOPPED=75
MARK=finished
LOCK=lock
JOIN_SECONDS=30
REMIND_SECONDS=10
STALL_SECONDS=300
MOST_LOSSES=3

ASKED=          # first signal that this script was sent; empty while there was none
_interruptions=0
_heir=()        # what asks mpirun to stop when this script is killed
if setpriv --pdeathsig keep true &>/dev/null; then _heir=(setpriv --pdeathsig USR1); fi
_pid=           # mpirun, while it runs
_began=         # when it was started
_last_word=TERM # what ends the ranks at once
_reminder=

# Ask mpirun to stop, but not before its ranks have joined: rank 0 then takes the lock of --out. Asked while its
# daemons start, Open MPI leaves some behind; and when a rank dies of the signal it waits for good for those that
# are just connecting. If no lock is to be seen it is asked all the same, and again: it drops a signal that comes
# before its ranks, and these remember that they were asked.
_pass_on() {
    local latest=$((SECONDS + JOIN_SECONDS))
    [[ -n $_pid && -z $_reminder ]] || return 0
    (
        trap - TERM INT HUP USR1
        # read waits as sleep does, but is no process that would outlive this one.
        until ((${#command[@]} == 0 || SECONDS >= latest)) || _is_of_this_start "$out/$LOCK"; do read -rt 0.2; done
        while kill -USR1 "$_pid"; do read -rt "$REMIND_SECONDS"; done
    ) &>/dev/null <> <(:) &
    _reminder=$!
}

_is_of_this_start() {
    [[ $(stat -c %Y "$1") -ge $_began ]]
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

# _sweep MPIRUN STATUS: remove what Open MPI leaves on this host of a job that was killed: mpirun's directory, and
# the ranks' shared memory, once no process has it any more.
_sweep() {
    local segment
    case $2 in 0|2|"$EXIT_STOPPED") return ;; esac
    for _ in {1..20}; do
        pgrep -s "$1" >/dev/null || break
        sleep 0.5
    done
    rm -rf "${TMPDIR:-/tmp}/ompi.$1"
    for segment in /dev/shm/sm_segment.*."$UID".*; do
        [[ -O $segment ]] && _is_of_this_start "$segment" || continue
        grep -qsF "$segment" /proc/[0-9]*/maps || rm -f "$segment"
    done
}

# Run one command to its end and return its status, whatever signals interrupt the waiting.
_run() {
    local before status ended
    # In a session of its own: Ctrl-C at a terminal, and qdel, reach every process of the group or session,
    # and would end mpirun before this script has spoken to it. setsid does not fork here, so $! is the
    # command.
    _began=$(date +%s)
    setsid ${_heir[@]+"${_heir[@]}"} "$@" &
    _pid=$!
    [[ -z $ASKED ]] || _pass_on
    while :; do
        before=$_interruptions
        wait "$_pid"
        status=$?
        [[ $before == "$_interruptions" ]] && break
    done
    ended=$_pid _pid=  # from here on the number may be another process's
    if [[ -n $_reminder ]]; then
        kill "$_reminder" 2>/dev/null
        _reminder=
    fi
    _sweep "$ended" "$status"
    return "$status"
}

# The functions that follow read and set variables of `launch`.

# _read_training OPTION ...: what matters here of train_imagenet.py's options, as that understands them.
_read_training() {
    local option value
    for option in "$@"; do
        case $option in --force|--resume|--resume=*|-r*) resume=() ;; esac
        case $option in --plan|--help|-h) trains=0 ;; esac
        case $option in --stall-timeout|--stall-timeout=*) stall=() ;; esac
        # Started again, a job that began with --force would throw away the checkpoint to start from.
        [[ $option == --force ]] || training+=("$option")
    done
    while (($#)); do
        option=$1 value=${2:-}
        case $1 in
            --out=*|--workers=*|--virtual-workers=*) option=${1%%=*} value=${1#*=} ;;
            -o?*) option=-o value=${1#-o} value=${value#=} ;;
            --out|-o|--workers|--virtual-workers) (($# == 1)) || shift ;;
        esac
        shift
        case $option in
            --out|-o) out=$value ;;
            --workers) workers=$value ;;
            --virtual-workers) workers=$((ranks * ${value:-1})) ;;
        esac
        # Fewer ranks share the same workers out anew.
        case $option in
            --force|--workers|--virtual-workers) ;;
            --out|-o) shared+=("--out=$value") ;;
            *) shared+=("$option") ;;
        esac
    done
}

# Options of Open MPI for several hosts, unless the user has chosen.
_span_hosts() {
    local given
    given=" ${mpirun_options[*]-} $(compgen -e)"
    # 10 + 3 x 5 s after a host was cut off its daemon is given up; five minutes by default.
    [[ $given == *oob_tcp_keepalive_* ]] || command+=(
        --prtemca oob_tcp_keepalive_time 10
        --prtemca oob_tcp_keepalive_intvl 5
        --prtemca oob_tcp_keepalive_probes 3)
    # A rank that lost its peer waits with the abort until that peer's host has told what became of it.
    [[ $given == *mpi_abort_delay* ]] || command+=(--mca mpi_abort_delay 2)
    # Docker gives each host a network of its own, under one address everywhere.
    [[ $given == *btl_tcp_if_* ]] || command+=(--mca btl_tcp_if_exclude lo,docker0)
}

# _leave_out HOST ...: from now on the job runs without these hosts, and with all that are not named. Fails if that
# leaves less than half: then it is the network, or this host.
_leave_out() {
    local host list=() fewer=0
    left_out=" $* "
    ((${#command[@]} == 0)) || placement=(-np "$ranks" ${mpirun_options[@]+"${mpirun_options[@]}"})
    again=(${training[@]+"${training[@]}"})
    (($#)) || return 0
    for host in "${HOSTS[@]}"; do
        [[ $left_out != *" $host "* ]] || continue
        list+=("$host:${RANKS_ON[$host]}")
        fewer=$((fewer + RANKS_ON[$host]))
    done
    if ((2 * ${#list[@]} < ${#HOSTS[@]})); then
        echo "launch: only ${#list[@]} of ${#HOSTS[@]} hosts answer: not starting again" >&2
        return 1
    fi
    ((fewer <= ranks)) || fewer=$ranks
    placement=(-np "$fewer" "$host_option" "$(IFS=,; echo "${list[*]}")" ${UNLISTED[@]+"${UNLISTED[@]}"})
    again=(${shared[@]+"${shared[@]}"} --workers "$workers")
    echo "launch: left out, for want of an answer: $*; $workers workers on $fewer ranks of ${#list[@]} hosts" >&2
}

# Whether a host that the job was running on does not answer.
_lost() {
    local host
    for host in "$@"; do
        [[ $left_out == *" $host "* ]] || return 0
    done
    return 1
}

launch() {
    local dry_run=${DRY_RUN:-0} ranks version argument name status losses=0
    local arguments=() mpirun_options=() command=() placement=() program=() host_option=--host silent=() left_out=
    local out=result trains=1 workers resume=(--resume auto) stall=() training=() shared=() again=()

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

    trap '_ask TERM' TERM
    trap '_ask INT' INT
    trap '_ask HUP' HUP
    trap '_ask USR1' USR1
    set_environment
    workers=$ranks
    read_hosts "$ranks" ${mpirun_options[@]+"${mpirun_options[@]}"}
    [[ -z ${RANKS_PER_NODE:-} && ${#HOSTS[@]} == 0 ]] || stall=(--stall-timeout "$STALL_SECONDS")
    _read_training "$@"
    set -- "$@" ${stall[@]+"${stall[@]}"}
    training+=(${stall[@]+"${stall[@]}"}) shared+=(${stall[@]+"${stall[@]}"})
    if ((ranks == 1 && ${#mpirun_options[@]} == 0)); then
        _last_word=KILL
    else
        if [[ ! -x $(command -v "${MPIRUN:-}") ]]; then
            echo "launch: no mpirun '${MPIRUN:-}' beside $PYTHON or on PATH:" \
                 "install the extra 'mpi', load the site's MPI, or set MPIRUN" >&2
            return 2
        fi
        command=("$MPIRUN")
        version=$("$MPIRUN" --version 2>&1)
        if [[ $version == *'Open MPI'* ]]; then
            # A rank shares its node's cores with its image loaders; bound to one core, all of them would
            # starve.
            command+=(--bind-to none)
            # On one machine more ranks than cores is a choice, across nodes it is a mistake.
            [[ -n ${RANKS_PER_NODE:-} ]] || command+=(--oversubscribe)
            [[ -z ${RANKS_PER_NODE:-} && ${#HOSTS[@]} == 0 ]] || _span_hosts
            for name in "${EXPORTED[@]}"; do command+=(-x "$name"); done
        else
            host_option=-hosts
            # MPICH does not notice that a host's proxy is gone: its ranks go with it.
            [[ -z ${_heir[*]-} ]] || program=(setpriv --pdeathsig KILL)
        fi
    fi
    _leave_out  # nobody
    program+=("$PYTHON" "$ROOT/train_imagenet.py")
    set -- "$@" ${resume[@]+"${resume[@]}"}

    if [[ $dry_run != 0 ]]; then
        for name in "${EXPORTED[@]}"; do printf '%s=%q ' "$name" "${!name}"; done
        printf '%q ' ${command[@]+"${command[@]}"} ${placement[@]+"${placement[@]}"} "${program[@]}" "$@"
        echo
        return 0
    fi

    # The mark of a run that --force gives up must not speak for this one.
    [[ $trains == 0 || " $* " != *' --force '* ]] || rm -f "$out/$MARK"
    while :; do
        _run ${command[@]+"${command[@]}"} ${placement[@]+"${placement[@]}"} "${program[@]}" "$@"
        status=$?
        if [[ $status == 0 && $trains == 1 && ! -e $out/$MARK ]]; then
            echo "launch: status 0, but the run has left no $out/$MARK: ranks were lost, or $(hostname) does not" \
                 "see that directory; start again to continue" >&2
            status=1
        fi
        [[ -z $ASKED && $trains == 1 && $status != 0 && $status != 2 ]] || break
        mapfile -t silent < <(silent_hosts)
        if [[ $status == "$EXIT_STOPPED" ]]; then
            echo 'launch: stopped with a checkpoint, and nobody asked this script: starting again' >&2
        else
            ((losses++ < MOST_LOSSES)) && _lost ${silent[@]+"${silent[@]}"} || break
        fi
        _leave_out ${silent[@]+"${silent[@]}"} || break
        [[ -z $ASKED ]] || { status=$EXIT_STOPPED; break; }
        # A rank 0 that was cut off holds --out until it ends itself.
        set -- ${again[@]+"${again[@]}"} --resume auto --wait
    done
    # A rank asked before it had its handler dies of the signal (Open MPI says 128 + 10, MPICH says 10), and Open
    # MPI asked before all its daemons were there says 250: nothing was trained since the last checkpoint.
    if [[ -n $ASKED ]]; then case $status in 138|10|250) status=$EXIT_STOPPED ;; esac; fi
    return "$status"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    launch "$@"
    exit
fi
