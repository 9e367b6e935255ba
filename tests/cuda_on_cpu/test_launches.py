"""What an iteration asks of the GPU, counted; with ``pytest -s`` the counts are printed."""

import functools
import json

import pytest


@pytest.fixture(scope='module')
def counts(mpirun, environment):
    """``counts(variant)``: of an iteration of ResNet-50, by what is counted."""
    @functools.cache
    def counts(variant):
        done = mpirun(1, '-m', 'jobs.bench.launches', '-B', '2', timeout=1200,
                      env={**environment(variant), 'CUDA_ON_CPU_IDLE': '1'})
        print(f'\n{variant}\n{done.stdout}')
        return json.loads(done.stdout)
    return counts


@pytest.mark.parametrize('variant', ['CuPy 13 with cuDNN', 'CuPy 13', 'CuPy 14'])
def test_counts(counts, variant):
    assert counts(variant)['calls of NCCL'] == 1
