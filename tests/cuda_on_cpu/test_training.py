"""Training through pure_nccl, CuPy, cuDNN or im2col and the GPU's kernels gives what the CPU gives."""

import functools
import re

import numpy as np
import pytest

from jobs.bench.weights import CASES as TRAININGS
from jobs.bench.weights import FLOAT32, RMSPROP, arrays, largest_difference
from jobs.faults import observation

VARIANTS = {
    'CuPy 13 with cuDNN': r'CuPy 13\..* CUDA 12\..*, cuDNN 8907 through CuPy$',
    'CuPy 13 beside cuDNN': r'CuPy 13\..* CUDA 12\..*, cuDNN 8907 through lib/gpu/cudnn\.py$',
    'CuPy 13': r'CuPy 13\..* CUDA 12\.\d+, .*\nno cuDNN \(.*; install the extra "gpu"\): .* im2col',
    'CuPy 14 beside cuDNN': r'CuPy 14\..* CUDA 13\..*, cuDNN 92800 through lib/gpu/cudnn\.py$',
    'CuPy 14': r'CuPy 14\..* CUDA 13\.\d+, .*\nno cuDNN \(.*; install the extra "gpu13"\): .* im2col',
}
ALL = [*VARIANTS]
ONE = ALL[:1]
OWN = 'CuPy 14 beside cuDNN'  # which lib/gpu/cudnn.py calls
TIMEOUT = 600  # seconds

# Name: ranks, options, bound, variants.
CASES = {name: (ranks, *TRAININGS[name], variants) for name, ranks, variants in [
    ('float32', 2, ALL), ('float16 on the wire', 2, ALL), ('mixed16', 2, ALL), ('pooled', 4, ONE),
    ('goyal', 1, ONE)]}
# The stand-ins' convolutions round less than a card's may, and are held closer.
CLOSER = {RMSPROP: FLOAT32}

# In the same processes.
FAULTS = {
    2: {
        'stopped 1': (CASES['mixed16'][1], [['SIGTERM', 1, 4]]),
        'stopped 2': ([*CASES['mixed16'][1], '--resume', 'auto'], []),
        'moved 1': (CASES['float32'][1], [['SIGTERM', 0, 4]]),
        'moved 2': ([*CASES['float32'][1], '--resume', 'auto', '--communicator', 'naive'],
                    [['SIGTERM', 1, 7]]),
        'moved 3': ([*CASES['float32'][1], '--resume', 'auto'], []),
        'nan': (['--checkpoint-interval', '1'], [['nan_loss', 1, 3]]),
        'nan at the end of an epoch': ([], [['nan_loss', 1, 5]]),
        'overflow': (['--loss-scale', '1e9'], []),
    },
    4: {'overflow of the sum': (['--loss-scale', '200000', '-B', '4'], [])},
    1: {},
}


@pytest.fixture(scope='session')
def ended(run):
    """``ended(variant, ranks)``: the runs of CASES and FAULTS on so many ranks, made once."""
    @functools.cache
    def ended(variant, ranks):
        runs = {name: (options, []) for name, (of_ranks, options, _, variants) in CASES.items()
                if of_ranks == ranks and variant in (None, *variants)}
        faults = {name: fault for name, fault in FAULTS[ranks].items() if variant == ONE[0] or (
            variant == OWN and name.startswith('stopped'))}
        return run(variant, ranks, runs | faults)
    return ended


def weights(folder, name):
    return arrays(folder / name)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_cupy_and_the_libraries_meant_are_in_use(ended, variant):
    _, done = ended(variant, 2)
    assert re.search(VARIANTS[variant], done.out, re.MULTILINE), done.out + done.err
    assert '2 x CPU in the place of a GPU' in done.out


@pytest.mark.parametrize('variant, name', [
    (variant, name) for name, case in CASES.items() for variant in case[3]])
def test_weights_and_statistics_are_the_cpus(ended, variant, name):
    ranks, _, bound, _ = CASES[name]
    folder, done = ended(variant, ranks)
    reference, on_cpu = ended(None, ranks)
    assert done.statuses[name] == on_cpu.statuses[name] == [0] * ranks, done.err + on_cpu.err
    assert largest_difference(weights(folder, name), weights(reference, name)) <= CLOSER.get(bound, bound)


@pytest.mark.parametrize('variant', [*ONE, OWN])
def test_tf32_is_used_when_it_was_asked_for_and_named_in_the_plan(run, ended, variant):
    folder, done = run(variant, 1, {'tf32': ([*CASES['goyal'][1], '--tf32'], [])})
    reference, _ = ended(None, 1)
    assert largest_difference(weights(folder, 'tf32'), weights(reference, 'goyal')) > 10 * FLOAT32
    assert 'deviation      arithmetic: GPUs that can' in done.out


@pytest.mark.parametrize('name', CASES)
def test_the_log_is_the_cpus(ended, name):
    logs = [observation.state(ended(variant, CASES[name][0])[0] / name)[2] for variant in (ONE[0], None)]
    assert len(logs[0]) == 2
    for row, expected in zip(*logs):
        assert row == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize('variant', [*ONE, OWN])
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one_byte_for_byte(ended, variant):
    folder, done = ended(variant, 2)
    assert (done.statuses['stopped 1'], done.statuses['stopped 2']) == ([75, 75], [0, 0])
    assert observation.differences(folder / 'stopped', folder / 'mixed16') == []
    assert (folder / 'stopped' / 'model.npz').read_bytes() == (folder / 'mixed16' / 'model.npz').read_bytes()


def test_a_checkpoint_goes_from_the_gpu_to_the_cpu_and_back(ended):
    folder, done = ended(ONE[0], 2)
    assert [done.statuses[f'moved {i}'] for i in (1, 2, 3)] == [[75, 75], [75, 75], [0, 0]]
    assert largest_difference(weights(folder, 'moved'), weights(folder, 'float32')) <= FLOAT32


def test_nan_ends_every_rank_before_the_update_and_names_parameter_and_rank(ended):
    folder, done = ended(ONE[0], 2)
    assert done.statuses['nan'] == [1, 1]
    assert re.search(r'iteration 3 .*gradient of \S+ holds NaN before the exchange, on rank 1\n', done.err)
    arrays, iteration, _ = observation.state(folder / 'nan')
    assert iteration == 2 and all(np.isfinite(array).all() for array in arrays.values())


def test_an_epoch_that_ends_with_nan_has_no_validation_no_row_and_no_checkpoint(ended):
    folder, done = ended(ONE[0], 2)
    name = 'nan at the end of an epoch'
    assert done.statuses[name] == [1, 1]
    assert re.search(r'iteration 5 .*gradient of \S+ holds NaN before the exchange, on rank 1\n', done.err)
    assert not (folder / name / 'log').exists() and not (folder / name / 'checkpoint').exists()


def test_overflow_of_the_wire_is_named(ended):
    _, done = ended(ONE[0], 2)
    assert done.statuses['overflow'] == [1, 1]
    assert re.search(r'iteration 1 .*: gradient of \S+ overflows float16 on the wire, on rank \d', done.err)


def test_overflow_of_the_sum_is_named(ended):
    _, done = ended(ONE[0], 4)
    assert done.statuses['overflow of the sum'] == [1] * 4
    assert re.search(r'iteration \d+ .*: sum over 4 processes of element \d+ of the gradient of \S+ '
                     'overflows float16', done.err)


@pytest.mark.parametrize('fault, options, message', [
    ('SIGKILL', [], 'rank 1.*signal 9'),
    ('stall', ['--stall-timeout', '20'], r'rank 1 of 2 .*: no iteration for \d+ s, last finished: 2')])
def test_a_rank_that_dies_or_stands_still_ends_the_others(run, fault, options, message):
    _, done = run(ONE[0], 2, {'fault': (options, [[fault, 1, 3]])})
    assert done.status != 0 and not done.statuses
    assert re.search(message, done.err, re.DOTALL), done.err


@pytest.mark.parametrize('variant', [*ONE, 'CuPy 13 beside cuDNN'])
def test_gpus_that_cudnn_8_does_not_know_are_refused_with_the_remedy(mpirun, environment, tmp_path, variant):
    done = mpirun(1, 'train_imagenet.py', '--synthetic', '--test', '--communicator', 'pure_nccl', '--out',
                  tmp_path / 'out', check=False,
                  env={**environment(variant), 'CUDA_ON_CPU_CAPABILITY': '100'})
    assert done.returncode == 2
    assert done.stderr.startswith('train_imagenet.py: --communicator pure_nccl: cuDNN 8 has no code for GPUs '
                                  'of compute capability 10.0; install the extra "gpu13"')


@pytest.fixture
def with_defect(mpirun, environment, small_data, tmp_path):
    def with_defect(variant, defect, *options, **more):
        return mpirun(2, 'tests/cuda_on_cpu/defects.py', defect, *small_data, '--arch', 'resnet8', '--insize',
                      '16', '-j', '0', '-E', '2', '--communicator', 'pure_nccl', '--out', tmp_path / defect,
                      *CASES['float32'][1], *options, timeout=TIMEOUT, env=environment(variant), **more)
    return with_defect


@pytest.mark.parametrize('variant, defect', [(ONE[0], 'kernel'), (OWN, 'operands')])
def test_a_defect_in_a_kernel_or_in_what_a_convolution_is_given_shows(
        ended, with_defect, tmp_path, variant, defect):
    with_defect(variant, defect)
    folder, _ = ended(None, 2)
    assert largest_difference(weights(tmp_path, defect), weights(folder, 'float32')) > 10 * FLOAT32


@pytest.mark.parametrize('defect, message', [
    # Fresh memory holds NaN; or sums wait for those that the other rank never asked for.
    ('order', 'iteration .*: (sum over 2 processes|gradient|mean) of |no iteration for 120 s'),
    ('count', 'iteration .*: (sum over 2 processes|gradient|mean) of ')])
def test_sums_that_nothing_waits_for_or_that_are_not_made_show(
        ended, with_defect, tmp_path, defect, message):
    done = with_defect(ONE[0], defect, '--stall-timeout', '120', check=False)
    if done.returncode:
        assert re.search(message, done.stderr), done.stderr
    else:
        folder, _ = ended(None, 2)
        assert largest_difference(weights(tmp_path, defect), weights(folder, 'float32')) > 10 * FLOAT32


@pytest.mark.parametrize('variant, defect, message', [
    (OWN, 'stream', r'iteration 1 .*: gradient of \S+ holds NaN'),  # as fresh memory does
    (OWN, 'stride', r'cudnnFindConvolutionBackwardDataAlgorithmEx: CUDNN_STATUS_BAD_PARAM \(cuDNN 92800\)')])
def test_a_defect_in_a_stream_or_in_a_call_of_cudnn_ends_the_run(
        with_defect, variant, defect, message):
    done = with_defect(variant, defect, check=False)
    assert done.returncode not in (0, 2)
    assert re.search(message, done.stderr), done.stderr
