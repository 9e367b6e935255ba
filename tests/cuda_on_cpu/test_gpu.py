"""The script for a machine with a GPU, ``jobs/bench/gpu.py``, at tiny sizes."""

import json
import os
import subprocess
import sys


def test_it_checks_tests_compares_and_measures(environment, pytestconfig, tmp_path):
    done = subprocess.run([sys.executable, 'jobs/bench/gpu.py', tmp_path, 'check', 'tests', 'weights',
                           'scaling', 'runs', '--small'], cwd=pytestconfig.rootpath,
                          env={**os.environ, **environment('CuPy 13 with cuDNN')}, text=True,
                          capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / 'figures.json').read_text())
    assert list(found) == ['check', 'tests', 'weights', 'scaling', 'sample']
    assert found['check']['agree'] == 4 and found['tests']['passed'] and found['sample']['accuracy']
    assert found['check']['notes'][0] == '1 x CPU in the place of a GPU'
    assert all(case['agrees'] for case in found['weights']['cases'].values())
    assert '| float32 |' in (tmp_path / 'figures.md').read_text()
