import sys

from extensions import progress


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
