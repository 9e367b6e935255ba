"""What importing the program must not do: MPI starts when it is imported, and decoders start before MPI."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted('.'.join(path.relative_to(ROOT).with_suffix('').parts)
                 for folder in ('lib', 'models', 'extensions') for path in (ROOT / folder).rglob('*.py')
                 if path.name not in ('__init__.py', '__main__.py'))


def loaded_by(code, *names):
    program = f'import sys\n{code}\nprint([name for name in {names!r} if name in sys.modules])'
    return subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()


def test_importing_everything_loads_neither_mpi_nor_chainermn():
    everything = f'import {", ".join(MODULES)}, train_imagenet'
    assert loaded_by(everything, 'mpi4py.MPI', 'chainermn') == '[]'


@pytest.mark.parametrize('module', ['lib.data.decoder_process, lib.data.decoding', 'lib.prepare.image'])
def test_processes_that_decode_load_no_chainer(module):
    assert loaded_by(f'import {module}', 'chainer', 'mpi4py.MPI') == '[]'
