"""What setup.py compiles: where that fails it goes on without, and a mistake would pass unnoticed."""

import pathlib
import shlex
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_loops_compile_without_a_warning():
    compiler = shlex.split(sysconfig.get_config_var('CC') or 'cc')
    headers = pathlib.Path(sysconfig.get_path('include'))
    if not shutil.which(compiler[0]) or not (headers / 'Python.h').exists():
        pytest.skip("no C compiler, or no headers of Python's")
    command = [*compiler, '-fsyntax-only', '-Wall', '-Werror', f'-I{headers}', ROOT / 'lib/_loops.c']
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
