# shellcheck shell=bash
# The hosts of a job, as mpirun's options list them, and which of them answer; sourced by launch.sh. What a
# scheduler hands to mpirun is not listed: its hosts are the scheduler's affair.

ANSWER_SECONDS=10

HOSTS=()          # names, in the order of the list
UNLISTED=()       # mpirun's options without the list
declare -A RANKS_ON=()
REMOTE=()         # command that runs another one on a host: HOST COMMAND

# read_hosts RANKS MPIRUN_OPTION...: sets all of the above. Ranks on a host: what the list says, but at most
# RANKS_PER_NODE; without either an equal share.
read_hosts() {
    local ranks=$1 entry name count entries=()
    shift
    HOSTS=() UNLISTED=() RANKS_ON=()
    read -ra REMOTE <<< "${PRTE_MCA_plm_ssh_agent:-${HYDRA_LAUNCHER_EXEC:-ssh -o BatchMode=yes}}"
    while (($#)); do
        case $1 in
            --hostfile|-hostfile|--machinefile|-machinefile|-f)
                mapfile -t entries < <(sed 's/#.*//; /^[[:space:]]*$/d' "${2:-/dev/null}")
                shift ;;
            --host|-host|-H|--hosts|-hosts)
                IFS=, read -ra entries <<< "${2:-}"
                shift ;;
            *)  UNLISTED+=("$1")
                case $1 in plm_ssh_agent|-launcher-exec) read -ra REMOTE <<< "${2:-}" ;; esac ;;
        esac
        (($# == 0)) || shift
    done
    for entry in ${entries[@]+"${entries[@]}"}; do  # 'a slots=8 max_slots=16', 'a:8', 'a'
        read -r name _ <<< "${entry/:/ }"
        count=
        [[ $entry =~ (^|[[:space:]])slots=([0-9]+) || $entry =~ ^[^[:space:]]*(:)([0-9]+) ]] &&
            count=${BASH_REMATCH[2]}
        [[ -n ${RANKS_ON[$name]:-} ]] || HOSTS+=("$name")
        RANKS_ON[$name]=$((${RANKS_ON[$name]:-0} + ${count:-${RANKS_PER_NODE:-1}}))
        [[ -n $count || -n ${RANKS_PER_NODE:-} ]] ||
            RANKS_ON[$name]=$(((ranks + ${#entries[@]} - 1) / ${#entries[@]}))
    done
    for name in ${HOSTS[@]+"${HOSTS[@]}"}; do
        count=${RANKS_PER_NODE:-${RANKS_ON[$name]}}
        ((RANKS_ON[$name] <= count)) || RANKS_ON[$name]=$count
    done
}

# What a launcher's daemon leaves behind when it is killed, once the last ranks are gone: shared memory that no
# process maps, and the directory of a process that is no more (one that nobody has reaped yet has no program).
# Without a single quote, for the host's shell.
_TIDY='for second in 1 2 3 4 5; do
    left=;
    for f in /dev/shm/sm_segment.* /dev/shm/mpich_shm_*; do
        [ -O "$f" ] || continue;
        if grep -qsF "$f" /proc/[0-9]*/maps; then left=1; else rm -f "$f"; fi;
    done;
    [ -n "$left" ] || break;
    sleep 1;
done;
for d in "${TMPDIR:-/tmp}"/prted.*; do
    [ ! -O "$d" ] || [ -e "/proc/${d##*.}/exe" ] || rm -rf "$d";
done'

# silent_hosts: prints those that do not answer; on those that do, tidies up after a job that has ended.
silent_hosts() {
    local host own
    own=" localhost 127.0.0.1 $(hostname) $(hostname -s) $(hostname -f 2>/dev/null) $(hostname -I 2>/dev/null) "
    for host in ${HOSTS[@]+"${HOSTS[@]}"}; do
        if [[ $own == *" $host "* ]]; then
            sh -c "$_TIDY" &>/dev/null
        else
            (
                timeout --kill-after=1 "$ANSWER_SECONDS" "${REMOTE[@]}" "$host" "sh -c '${_TIDY//$'\n'/ }'" \
                    </dev/null &>/dev/null
                case $? in 124|137|255) echo "$host" ;; esac  # too late; ssh's own status
            ) &
        fi
    done
    wait
}
