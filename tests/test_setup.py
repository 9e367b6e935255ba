"""What setup.py compiles: where that fails it goes on without, and a mistake would pass unnoticed."""

import pathlib
import platform
import shlex
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize('source, flags', [
    ('loops.c', []), *((source, ['-DNAME=x', *flags])
                        for source in ('layers.c', 'convolution.c', 'batch_normalization.c')
                        for flags in ([], ['-mavx2', '-mfma'], ['-mavx512f', '-mavx512vl', '-mfma'])
                        if not flags or platform.machine() in ('x86_64', 'AMD64'))])
def test_it_compiles_without_a_warning(source, flags):
    compiler = shlex.split(sysconfig.get_config_var('CC') or 'cc')
    headers = pathlib.Path(sysconfig.get_path('include'))
    if not shutil.which(compiler[0]) or not (headers / 'Python.h').exists():
        pytest.skip("no C compiler, or no headers of Python's")
    command = [*compiler, '-fsyntax-only', '-Wall', '-Werror', *flags, f'-I{headers}',
               ROOT / 'lib' / 'compiled' / source]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('found, installed', [(False, True), (True, False)])
def test_make_installs_an_mpi_only_where_there_is_none(tmp_path, found, installed):
    for name in ('sh', 'touch', 'python3'):
        (tmp_path / name).symlink_to(shutil.which(name))
    if found:
        (tmp_path / 'mpirun').write_text('#!/bin/sh\n')
        (tmp_path / 'mpirun').chmod(0o755)
    command = [shutil.which('make'), '--dry-run', f'VENV={tmp_path}/venv', f'{tmp_path}/venv/.train']
    done = subprocess.run(command, cwd=ROOT, env={'PATH': str(tmp_path)}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert ('[mpi]' in done.stdout) == installed
