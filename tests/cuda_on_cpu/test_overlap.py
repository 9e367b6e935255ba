"""Gradients that leave in parts during backward, on a stream of NCCL's own, which events alone order."""

import functools

import numpy as np
import pytest

from jobs.bench.weights import FLOAT16, FLOAT32, MIXED16, WIDE, largest_difference
from jobs.faults import observation
from tests.cuda_on_cpu.test_training import weights

KINDS = {
    'float16': (['--loss-scale', '128', '--virtual-workers', '2', '-B', '4'], FLOAT16),
    'float32': ([*WIDE, '--workers', '5', '-B', '4'], FLOAT32),
    'mixed16': (['--loss-scale', '128', '--dtype', 'mixed16'], MIXED16),
}


@pytest.fixture(scope='module')
def ended(run):
    """``ended(variant)``: folder of each kind on two ranks, in several parts, with and without overlap."""
    @functools.cache
    def ended(variant):
        runs = {f'{kind} {when}': ([*options, *more], []) for kind, (options, _) in KINDS.items()
                for when, more in [('during', []), ('after', ['--no-overlap'])]}
        folder, done = run(variant, 2, runs, between_hosts=True)
        assert all(done.statuses[name] == [0, 0] for name in runs), done.err
        return folder
    return ended


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('variant', ['CuPy 13', 'CuPy 14'])
def test_during_backward_the_bits_are_those_of_an_exchange_after_it(ended, variant, kind):
    folder = ended(variant)
    assert observation.differences(folder / f'{kind} during', folder / f'{kind} after') == []


@pytest.mark.parametrize('kind', KINDS)
def test_during_backward_the_weights_are_the_cpus(ended, kind):
    name = f'{kind} during'
    got, expected = (weights(ended(variant), name) for variant in ('CuPy 13', None))
    assert all(np.isfinite(array).all() for array in got.values())
    assert largest_difference(got, expected) <= KINDS[kind][1]
