"""Evaluation of what a run has left, against the run's own validation."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

from lib import evaluate
from lib.checkpoint import weights
from lib.data.batches import validation_batches

import numpy as np
import pytest
from PIL import Image

import models

ROOT = pathlib.Path(evaluate.__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def run(tmp_path_factory, train_into):
    """Output directory of a finished run on two ranks, with batches that do not divide the validation set."""
    out = tmp_path_factory.mktemp('evaluate') / 'out'
    train_into(out, 2, '-B', '8', '-E', '2', '-b', '4')
    return out


def line_of(row):
    """The line that belongs to a row of the log of 21 validation images."""
    return (f'top-1 {100 * row["validation/main/accuracy"]:.3f} %  '
            f'top-5 {100 * row["validation/main/accuracy_top5"]:.3f} %  '
            f'loss {row["validation/main/loss"]!r}  (21 images)\n')


@pytest.mark.parametrize('source, row', [('.', 1), ('model.npz', 1), ('checkpoint/iteration-00000010.npz', 1),
                                         ('checkpoint/iteration-00000005.npz', 0)])
def test_as_many_processes_give_the_runs_own_figures_to_the_last_digit(mpirun, run, small_data, source, row):
    log = json.loads((run / 'log').read_text())
    assert mpirun(2, '-m', 'lib.evaluate', run / source, small_data[1]).stdout == line_of(log[row])


@pytest.mark.parametrize('jobs', [0, 2])
def test_one_process_gives_the_same_counts(run, small_data, capsys, jobs):
    log = json.loads((run / 'log').read_text())
    assert evaluate.main([str(run), str(small_data[1]), '-j', str(jobs)]) == 0
    told, expected = capsys.readouterr().out.split('loss '), line_of(log[-1]).split('loss ')
    assert told[0] == expected[0]
    assert float(told[1].split()[0]) == pytest.approx(float(expected[1].split()[0]), rel=1e-6)


def test_the_digits_do_not_depend_on_who_says_the_size_of_a_step(run, small_data, capsys):
    for options in ([], ['-b', '4']):
        evaluate.main([str(run), str(small_data[1]), '-j', '0', *options])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


@pytest.mark.parametrize('options, expected', [([], 4), (['-b', '7'], 7)])
def test_a_step_has_as_many_images_as_in_training_or_as_the_user_says(
        run, small_data, monkeypatch, options, expected):
    sizes = []

    def batches(*arguments):
        for batch in validation_batches(*arguments):
            sizes.append(len(batch[0]))
            yield batch
    monkeypatch.setattr(evaluate, 'validation_batches', batches)
    assert evaluate.main([str(run), str(small_data[1]), '-j', '0', *options]) == 0
    assert max(sizes) == expected and sum(sizes) == 21


def test_the_summary_has_the_means_of_what_was_added_up():
    assert evaluate.summarize(np.array([50, 10, 30, 40.0])) == (
        'top-1 25.000 %  top-5 75.000 %  loss 1.25  (40 images)')


def test_a_folder_of_some_classes_is_labelled_by_their_names(run, small_data, tmp_path, capsys):
    shutil.copytree(small_data[1] / 'cat', tmp_path / 'cat')
    (tmp_path / 'list').write_text(''.join(f'{path} 2\n' for path in sorted((tmp_path / 'cat').iterdir())))
    for val in (tmp_path, tmp_path / 'list'):
        assert evaluate.main([str(run), str(val), '-j', '0']) == 0
    folder, listed = capsys.readouterr().out.splitlines()
    assert folder == listed and '(7 images)' in folder


def test_images_get_their_best_labels_with_probabilities(run, small_data, capsys):
    paths = [str(small_data[1] / name / f'{name}_0.JPEG') for name in ('ant', 'cat')]
    assert evaluate.main([str(run), *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == paths
    for answers in (lines[1:4], lines[5:8]):
        percent, names = zip(*(re.fullmatch(r' +(\d+\.\d\d) %  (\w+)', line).groups() for line in answers))
        percent = [float(value) for value in percent]
        assert sorted(names) == ['ant', 'bee', 'cat']
        assert percent == sorted(percent, reverse=True) and sum(percent) == pytest.approx(100, abs=0.02)


def test_images_are_classified_once_by_a_job_of_two(mpirun, run, small_data):
    path = small_data[1] / 'ant' / 'ant_0.JPEG'
    assert mpirun(2, '-m', 'lib.evaluate', run, path).stdout.count('ant_0.JPEG') == 1


def test_an_image_shows_what_the_counts_count(run, small_data, capsys):
    paths = sorted(map(str, small_data[1].rglob('*.JPEG')))
    evaluate.main([str(run), *paths])
    lines = capsys.readouterr().out.splitlines()
    right = sum(lines[4 * i + 1].endswith(path.split('/')[-2]) for i, path in enumerate(paths))
    evaluate.main([str(run), str(small_data[1]), '-j', '0'])
    assert f'top-1 {100 * right / 21:.3f} %' in capsys.readouterr().out


def saved(path, description=None, **network):
    """A weights file of an untrained ResNet-8 for three classes."""
    weights.save(path, models.build('resnet8', 3, **network), description)
    return str(path)


def test_weights_of_other_programs_take_what_the_user_says(small_data, tmp_path, capsys):
    path = saved(tmp_path / 'model.npz')
    assert evaluate.main([path, str(small_data[1]), '-j', '0', '--arch', 'resnet8', '--insize', '16']) == 0
    done = capsys.readouterr()
    assert '(21 images)' in done.out and 'sorted by name' in done.err
    assert evaluate.main([path, str(small_data[1] / 'ant' / 'ant_0.JPEG'), '--arch', 'resnet8']) == 0
    assert 'class 2' in capsys.readouterr().out


def test_a_directory_of_fewer_classes_needs_their_names(small_data, tmp_path, capsys):
    shutil.copytree(small_data[1] / 'cat', tmp_path / 'val' / 'cat')
    path = saved(tmp_path / 'model.npz')
    assert evaluate.main([path, str(tmp_path / 'val'), '-j', '0', '--arch', 'resnet8']) == 2
    assert '1 class folders, and the network has 3' in capsys.readouterr().err


def test_a_bad_image_is_named_or_left_out(run, small_data, tmp_path, capsys):
    val = shutil.copytree(small_data[1], tmp_path / 'val')
    (val / 'ant' / 'text.JPEG').write_text('no image')
    for what in (val, val / 'ant' / 'text.JPEG'):
        assert evaluate.main([str(run), str(what), '-j', '0']) == 2
        assert 'text.JPEG' in capsys.readouterr().err
    assert evaluate.main([str(run), str(val), '-j', '0', '--on-bad-image', 'skip']) == 0
    assert '(21 images)' in capsys.readouterr().out
    both = [str(val / 'ant' / name) for name in ('text.JPEG', 'ant_0.JPEG')]
    assert evaluate.main([str(run), *both, '--on-bad-image', 'skip']) == 0
    told = capsys.readouterr()
    assert 'text.JPEG' in told.err and told.out.startswith(both[1])


def test_a_set_of_bad_images_alone_is_refused(run, tmp_path, capsys):
    (tmp_path / 'text.JPEG').write_text('no image')
    (tmp_path / 'list').write_text('text.JPEG 0\n')
    assert evaluate.main([str(run), str(tmp_path / 'list'), '--root', str(tmp_path), '-j', '0',
                          '--on-bad-image', 'skip']) == 2
    assert 'none of its images can be decoded' in capsys.readouterr().err


@pytest.mark.parametrize('source, what, named', [
    ('missing', 'val', 'missing'), ('{run}', 'missing', 'missing'), ('{run}', 'one.jpg', 'one.jpg')])
def test_what_is_not_there_is_named_on_one_line(mpirun, run, tmp_path, source, what, named):
    done = mpirun(2, '-m', 'lib.evaluate', source.format(run=run), what, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith('lib.evaluate')]
    assert done.returncode == 2 and done.stdout == ''
    assert len(lines) == 1 and named in lines[0]


def test_more_memory_than_there_is_ends_in_one_line(run, small_data, monkeypatch, capsys):
    def full(path, insize):
        raise MemoryError('for 28 GiB')

    path = str(small_data[1] / 'ant' / 'ant_0.JPEG')
    monkeypatch.setattr(evaluate.decoding, 'load_validation', full)
    assert evaluate.main([str(run), path]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert f'{path}: out of memory (for 28 GiB)' in line and '--insize' in line


def test_more_decoders_than_a_host_can_take_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(['run', 'val', '-j', '257'])
    assert ended.value.code == 2 and "'257' is not an integer from 0 to 256" in capsys.readouterr().err


@pytest.mark.parametrize('redirected, status, words', [
    ('>/dev/full', 2, 'lib.evaluate: standard output cannot be written (No space left on device)'),
    ('| true', 0, ''), ('>&-', 0, '')])
def test_output_that_nobody_takes_gives_no_traceback(run, small_data, redirected, status, words):
    done = subprocess.run(['sh', '-c', f'"$@" {redirected}', 'sh', sys.executable, '-m', 'lib.evaluate', run,
                           small_data[1] / 'ant' / 'ant_0.JPEG'], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == status and done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == bool(words)


def test_ctrl_c_ends_in_one_line(run, small_data, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.decoding, 'load_validation', lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert evaluate.main([str(run), str(small_data[1] / 'ant' / 'ant_0.JPEG')]) == 130
    assert capsys.readouterr().err == 'lib.evaluate: interrupted\n'


def test_names_that_no_terminal_takes_are_printed_all_the_same(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / 'a.png')
    path = saved(tmp_path / 'model.npz', {'arch': 'resnet8', 'insize': 32, 'dtype': 'float32', 'n_class': 3,
                                          'classes': ['ant', 'b\udcffe', 'cat']})
    assert evaluate.main([path, str(tmp_path / 'a.png')]) == 0
    assert r'b\xffe' in capsys.readouterr().out
