"""Figures out of what the commands print, and their tables."""

import json
import types

import pytest

from jobs import gpu_check
from jobs.bench import gpu_figures

PLAN = types.SimpleNamespace(arch='resnet50', workers=1, batch=32, total_batch=32)
MODEL = types.SimpleNamespace(count_params=lambda: 25_000_000)
SECONDS = {'allreduce': 0.001, 'update': 0.0005, 'data': 0, 'iteration': 0.04}


def test_of_the_check_it_reads_what_gpu_check_prints():
    output = ['1 x NVIDIA H200', 'CuPy 13.6.0, CUDA 12.9', 'Normalized images. as on the CPU',
              'The exchange. DIFFERENT FROM THE CPU: by far', *gpu_check.report(PLAN, MODEL, SECONDS),
              'copy within the GPU: 2800 GB/s; memory taken: 3.2 GB']
    found = gpu_figures.of_check('\n'.join(output))
    assert found['notes'] == output[:2]
    assert (found['agree'], found['differ'], found['images_per_second']) == (1, 1, 800)
    assert found['update_GB_per_s'] == 1400 and found['update_of_copy'] == 0.5


@pytest.mark.parametrize('output, counts', [
    ('..\n8 passed, 3264 deselected in 1.20s', {'passed': 8}),
    ('1 failed, 7 passed, 2 skipped, 1 error in 9s', {'failed': 1, 'passed': 7, 'skipped': 2, 'error': 1})])
def test_of_the_tests_it_reads_pytest_s_last_line(output, counts):
    found = gpu_figures.of_tests(output)
    assert {name: number for name, number in found.items() if name != 'line'} == counts


def test_tests_that_were_all_skipped_are_no_success():
    with pytest.raises(ValueError, match='no test passed'):
        gpu_figures.of_tests('8 skipped, 3264 deselected in 1.20s')


def entry(step, rates, **more):
    return {'step': step, 'outcome': 'done', 'wall_seconds': 1, 'line': 'a|b', 'images_per_second': rates,
            **more}


def test_ratios_to_pytorch_are_medians_of_those_within_a_turn():
    found = {'scaling': entry('scaling', 7.0),
             'ours tf32 32 1': entry('torch', 100.0),
             'torch 32 1': entry('torch', {'tf32': 200.0, 'float16': 400.0}),
             'ours tf32 32 2': entry('torch', 300.0),
             'torch 32 2': entry('torch', {'tf32': 300.0, 'float16': 400.0}),
             'ours tf32 256 1': entry('torch', 1.0)}
    rows = [line.strip('| ').split(' | ') for line in gpu_figures.against_torch(found, 32).splitlines()]
    assert rows[0][-2:] == ['tf32', 'float16'] and rows[2][-2:] == ['250', '400']
    assert rows[3] == ['ours, tf32', '200', '0.75', '0.50']
    assert gpu_figures.against_torch(found, 256) is None


def test_weights_that_differ_and_cases_that_failed_show_in_line_and_table(tmp_path):
    (tmp_path / 'weights.json').write_text(json.dumps({
        'float32': {'difference': 2e-5, 'where': 'fc/W', 'bound': 1e-4, 'agrees': True},
        'mixed16': {'difference': 0.5, 'where': 'fc/b', 'bound': 5e-2, 'agrees': False},
        'goyal': {'bound': 1e-4, 'failed': ['a.txt']}}))
    found = gpu_figures.of_weights(tmp_path)('')
    assert found['line'].startswith('1 of 3 trainings as on the CPU')
    text = gpu_figures.tables({'weights': entry('weights', 1, **found)})
    assert '| mixed16 | 5.0e-01 | 5e-02 | fc/b | DIFFERENT |' in text
    assert '| goyal |  |  |  | FAILED |' in text
