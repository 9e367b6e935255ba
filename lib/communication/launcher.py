"""What the launcher told this process, known before MPI starts."""

import os

_RANK_VARIABLES = ('OMPI_COMM_WORLD_RANK', 'PMIX_RANK', 'PMI_RANK', 'SLURM_PROCID')
_SIZE_VARIABLES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'SLURM_STEP_NUM_TASKS')


def launched_rank():
    """Return the rank that the launcher gave this process; 0 when launched alone."""
    return _from_environment(_RANK_VARIABLES, 0)


def is_launched():
    """Whether a launcher started this process, or a user did who runs it alone."""
    return any(os.environ.get(name, '').isdigit() for name in _RANK_VARIABLES)


def launched_size():
    """Return the number of processes that the launcher started; 1 when launched alone."""
    return _from_environment(_SIZE_VARIABLES, 1)


def _from_environment(names, default):
    values = (os.environ.get(name, '') for name in names)
    return next((int(value) for value in values if value.isdigit()), default)
