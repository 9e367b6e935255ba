"""PyTorch's step, where PyTorch is not installed."""

import importlib.util
import subprocess
import sys

import pytest

from jobs.bench import torch_step


@pytest.mark.skipif(importlib.util.find_spec('torch') is not None, reason='PyTorch is installed')
def test_without_pytorch_it_says_in_one_line_how_to_get_it():
    done = subprocess.run([sys.executable, torch_step.__file__], text=True, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install torch' in done.stderr and len(done.stderr.splitlines()) == 1
