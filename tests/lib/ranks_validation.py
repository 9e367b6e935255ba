"""Validates N = 0...17 images in batches of 1, 4, 32 on 1, 2 and 3 ranks against one process's count."""

import pathlib
import sys
import types

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from lib import validation  # noqa: E402
from lib.communication import collectives, communicators  # noqa: E402

from test_validation import Threshold, images, in_batches, independent_sums  # noqa: E402

whole = communicators.create_communicator('naive')
for size in (1, 2, 3):
    comm = whole.split(0 if whole.rank < size else 1, whole.rank)
    if whole.rank >= size:
        continue
    for n in range(18):
        pixels, labels = images(n, seed=n)
        for batchsize in (1, 4, 32):
            plan = types.SimpleNamespace(recipe=types.SimpleNamespace(bn_statistics='last'), processes=size,
                                         n_val=n)
            sums = validation.evaluate_share(
                plan, comm.rank, Threshold(), None,
                lambda start, stop: in_batches(pixels[start:stop], labels[start:stop], batchsize))  # noqa: B023
            collectives.sum_over_processes(comm, sums)
            np.testing.assert_allclose(sums, independent_sums(pixels, labels), rtol=1e-5)
            assert validation.means(sums).get('accuracy') == (None if n == 0 else sums[1] / n)
whole.mpi_comm.Barrier()
if whole.rank == 0:
    print('18 sizes x 3 batches x 3 rank counts: all equal')
