"""What is settled before CuPy is imported, seen by a module in its place."""

import os
import subprocess
import sys

from lib.gpu import wheels

import pytest


@pytest.mark.parametrize('given, expected', [(None, ''), ('cub,cutensor', 'cub,cutensor')])
def test_cupy_compiles_no_cub_unless_the_user_wants_it(tmp_path, given, expected):
    (tmp_path / 'cupy.py').write_text('import os\nprint(repr(os.environ["CUPY_ACCELERATORS"]))\n')
    environment = {name: value for name, value in os.environ.items() if name != 'CUPY_ACCELERATORS'}
    if given is not None:
        environment['CUPY_ACCELERATORS'] = given
    program = f'import sys; import lib; sys.path.insert(0, {str(tmp_path)!r}); import cupy'
    done = subprocess.run([sys.executable, '-c', program], env=environment, text=True, capture_output=True,
                          check=True)
    assert done.stdout == f'{expected!r}\n'


def test_libraries_are_found_in_nvidias_wheels(tmp_path, monkeypatch):
    library = tmp_path / 'nvidia' / 'cudnn' / 'lib' / 'libcudnn.so.9'
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert str(library) in wheels.find('cudnn/lib/libcudnn.so.9')
    assert str(library) not in wheels.find('cudnn/lib/libcudnn*.so.8')
