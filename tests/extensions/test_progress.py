import io
import json
import sys
import types

from extensions import progress


def test_table_fits_eighty_columns():
    out = io.StringIO()
    row = {'epoch': 89.9837, 'iteration': 3519, 'main/loss': 12345.678, 'validation/main/loss': 12345.678,
           'main/accuracy': 0.76543, 'validation/main/accuracy': 0.74943, 'lr': 0.0128, 'alpha_sgd': 1.0,
           'images_per_sec': 128418.3, 'elapsed_time': 104400.5}
    log = [row, {'epoch': 90, 'iteration': 3520}]
    progress.Table(out)(types.SimpleNamespace(get_extension=lambda name: types.SimpleNamespace(log=log)))
    header, first, second = out.getvalue().replace('\033[J', '').splitlines()
    assert max(map(len, (header, first, second))) <= 80
    assert header.split() == 'epoch iter loss val.loss acc val.acc eta alpha img/s seconds'.split()
    assert json.loads(f'[{",".join(first.split())}]') == [
        89.98, 3519, 12350, 12350, 0.7654, 0.7494, 0.0128, 1, 128418, 104400]


def test_pipe_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress.os, 'readlink', lambda path: 'pipe:[1]')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    assert not progress.on_terminal()


def test_terminal_of_the_launcher_counts(monkeypatch):
    monkeypatch.setattr(progress.os, 'readlink', lambda path: '/dev/pts/3')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    assert progress.on_terminal()


def test_system_without_proc_has_no_terminal(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)
    monkeypatch.setattr(progress.os, 'readlink', missing)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    assert not progress.on_terminal()
