"""jobs/gpu_check.py on GPUs where there are any, and its own soundness on the CPU."""

import pathlib
import re

from lib.run import devices

import numpy as np
import pytest
from chainer.backends import cuda
from chainer.testing import attr

from jobs import gpu_check

NETWORK = ['--arch', 'resnet8', '--insize', '16']
ON_CPU = pathlib.Path(__file__).resolve().parent / 'ranks_gpu_check.py'


@pytest.mark.skipif(devices.missing_for_gpus() is None, reason='there is a GPU')
def test_without_a_gpu_it_says_so_in_one_line_and_exits_2(mpirun):
    done = mpirun(1, 'jobs/gpu_check.py', check=False)
    assert done.returncode == 2
    assert re.match(r'gpu_check\.py: --communicator pure_nccl: .*; .*\n', done.stderr)
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('ranks', [1, 2])
def test_checks_pass_and_measure_with_the_cpu_in_the_gpu_s_place(mpirun, ranks):
    *checks, measured, update = mpirun(ranks, ON_CPU).stdout.splitlines()
    assert len(checks) == 4 and all(line.endswith('. as on the CPU') for line in checks)
    pattern = rf'resnet8, {ranks} x 32 images: \d+ images/s, .* ms an iteration \(forward and backward .*\)'
    assert re.fullmatch(pattern, measured)
    assert re.fullmatch(r'update: \d+ GB/s', update)


def test_a_difference_on_another_rank_is_told_and_the_rest_is_measured(mpirun):
    *agreeing, differing, _, _ = mpirun(2, ON_CPU, 'differ').stdout.splitlines()
    assert len(agreeing) == 3 and all(line.endswith('. as on the CPU') for line in agreeing)
    assert differing.endswith('DIFFERENT FROM THE CPU: rank 1: whole numbers came out different')


@pytest.mark.parametrize('ranks', [8, 1024, 2048])
def test_what_it_exchanges_adds_up_exactly_on_a_float16_wire(ranks):
    given = np.stack([np.ravel(gpu_check.whole_gradients(rank, [50])) for rank in range(ranks)])
    in_turn = np.add.accumulate(given.astype(np.float16))[-1]
    assert np.array_equal(in_turn, given.sum(axis=0)) and abs(given).max() == 1


@attr.gpu
def test_gpu_agrees_with_the_cpu(mpirun):
    done = mpirun(1, 'jobs/gpu_check.py', *NETWORK, '--iterations', '5', timeout=600)
    assert done.stdout.count('as on the CPU') == 4


@attr.multi_gpu(2)
def test_two_gpus_agree_with_the_cpu(mpirun):
    if cuda.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip('needs two GPUs')
    done = mpirun(2, 'jobs/gpu_check.py', *NETWORK, '--iterations', '5', timeout=600)
    assert done.stdout.count('as on the CPU') == 4


@attr.gpu
def test_two_ranks_on_one_gpu_are_refused(mpirun):
    done = mpirun(2, 'jobs/gpu_check.py', check=False, env={'CUDA_VISIBLE_DEVICES': '0'})
    assert done.returncode == 2
    assert 'ranks 0 and 1 on host' in done.stderr


@attr.gpu
def test_program_trains_on_a_gpu(mpirun, tmp_path):
    mpirun(1, 'train_imagenet.py', '--synthetic', *NETWORK, '--test', '--out', tmp_path / 'out',
           timeout=600)
    assert (tmp_path / 'out' / 'model.npz').exists()


@attr.gpu
def test_program_trains_in_mixed_precision_on_a_gpu(mpirun, tmp_path):
    mpirun(1, 'train_imagenet.py', '--synthetic', *NETWORK, '--test', '--dtype', 'mixed16',
           '--loss-scale', '128', '--out', tmp_path / 'out', timeout=600)
    assert (tmp_path / 'out' / 'model.npz').exists()
