"""The tests that need a GPU, on the stand-ins."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize('variant, tests', [
    ('CuPy 13 with cuDNN', 'tests'), ('CuPy 14 beside cuDNN', 'tests/lib/gpu/test_cudnn.py')])
def test_tests_that_need_a_gpu_pass_on_it(environment, pytestconfig, variant, tests):
    done = subprocess.run([sys.executable, '-m', 'pytest', '-m', 'gpu', '-p', 'no:cacheprovider', tests],
                          cwd=pytestconfig.rootpath, env={**os.environ, **environment(variant)},
                          text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'^\d+ passed, \d+ deselected', done.stdout, re.MULTILINE), done.stdout
