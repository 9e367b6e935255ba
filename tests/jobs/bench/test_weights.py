"""The comparison of two trainings, with the CPU in the place of the GPU too."""

import json
import math

import numpy as np
import pytest

from jobs.bench import weights


def test_trainings_that_are_the_same_do_not_differ(mpirun, tmp_path):
    done = mpirun(1, '-m', 'jobs.bench.weights', tmp_path, '--communicator', 'naive', '--cases', 'goyal')
    assert 'goyal: as on the CPU: by 0.0e+00 in ' in done.stdout
    assert json.loads((tmp_path / 'weights.json').read_text())['goyal']['agrees']


def test_a_training_that_fails_is_named_with_its_output(mpirun, tmp_path):
    (tmp_path / '0-gpu').write_text('a file where the run would write')
    done = mpirun(1, '-m', 'jobs.bench.weights', tmp_path, '--communicator', 'naive', '--cases', 'goyal',
                  check=False)
    assert done.returncode != 0
    assert done.stdout == f'goyal: FAILED, see {tmp_path / "0-gpu.txt"}\n'


@pytest.mark.parametrize('value, expected', [(8.5, 0.0625), (math.nan, math.nan)])
def test_the_largest_difference_is_in_parts_of_the_array_s_largest_element(value, expected):
    arrays = {f'p{i}': np.array([4.0, -8.0]) for i in range(31)}
    others = {**arrays, 'p7': np.array([4.0, -value])}
    assert weights.largest_difference(others, arrays) == pytest.approx(expected, nan_ok=True)
    assert weights.differences(others, arrays)['p8'] == 0
