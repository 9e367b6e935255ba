"""What an iteration and a checkpoint ask of the GPU, counted; with ``pytest -s`` the counts are printed."""

import functools
import json

import pytest

# Network, side of its images, and parts in which its gradients travel. cuDNN's stand-in knows no pooling.
VARIANTS = {'CuPy 13 with cuDNN': ('resnet20', 32, 1), 'CuPy 13': ('resnet50', 224, 3),
            'CuPy 14': ('resnet50', 224, 3)}


@pytest.fixture(scope='module')
def measured(mpirun, environment):
    """``measured(variant)``: what jobs/bench/launches.py prints."""
    @functools.cache
    def measured(variant):
        arch, insize, _ = VARIANTS[variant]
        done = mpirun(1, '-m', 'jobs.bench.launches', '-B', '2', '--arch', arch, '--insize', insize,
                      timeout=1200, env={**environment(variant), 'CUDA_ON_CPU_IDLE': '1'})
        print(f'\n{variant}\n{done.stdout}')
        return json.loads(done.stdout)
    return measured


@pytest.mark.parametrize('variant', VARIANTS)
def test_an_iteration_launches_few_kernels_beside_forward_and_backward(measured, variant):
    outside = measured(variant)['kernels outside']
    parts = VARIANTS[variant][2]
    assert (outside['pack'], outside['mean_from_wire'], outside['update']) == (parts, parts, 1)
    assert sum(outside.values()) <= 40


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_host_waits_for_nothing_in_an_iteration(measured, variant):
    iteration = measured(variant)['iteration']
    assert iteration['calls of NCCL'] == VARIANTS[variant][2]
    for what in 'waits', 'copy to GPU, pageable', 'copy to host, pageable', 'allocations':
        assert iteration[what] == 0


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_checkpoint_takes_four_copies_and_one_wait(measured, variant):
    checkpoint = measured(variant)['checkpoint']
    assert checkpoint['copy to host'] == 4  # theta, m, delta, and the statistics of batch normalization
    assert (checkpoint['waits'], checkpoint['copy to host, pageable']) == (1, 0)
