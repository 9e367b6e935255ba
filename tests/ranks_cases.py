"""What the scripts of cases do that the fixture ``assert_on_ranks`` starts on several ranks."""

import sys
import traceback

from mpi4py import MPI


def run(cases):
    """Call each case on every rank; rank 0 prints the name of one that all have passed."""
    world = MPI.COMM_WORLD
    for case in cases:
        try:
            case()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            world.Abort(1)
        world.Barrier()
        if world.rank == 0:
            print(case.__name__, flush=True)
