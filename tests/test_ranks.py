"""What holds for the ranks of a job, iteration by iteration."""

import json
import pathlib

import pytest

PROGRAM = pathlib.Path(__file__).with_name('ranks_training.py')


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_ranks_hold_the_same_bits_after_every_iteration_and_the_first_updates(mpirun, dtype):
    told = mpirun(3, PROGRAM, dtype).stdout.splitlines()
    assert told == [f'iteration {i}: same True, moved True' for i in range(1, 7)]


def test_32_ranks_run_on_few_cores_and_end(mpirun, tmp_path):
    mpirun(32, 'train_imagenet.py', '--synthetic', '--n-train', '96', '-E', '1', '-B', '1', '--arch',
           'resnet8', '--insize', '16', '-o', tmp_path / 'out', timeout=300)
    log = json.loads((tmp_path / 'out' / 'log').read_text())
    assert [row['iteration'] for row in log] == [3]
