import dataclasses
import threading
import types

from lib.plan import Plan
from lib.recipe import PUBLISHED

import pytest
from PIL import Image

from extensions import Plots

PLAN = Plan(recipe=PUBLISHED['paper'], arch='', insize=1, n_class=2, stage_sizes=(1,), n_statistics=0,
            n_train=64, n_val=0, data='', workers=1, processes=1)


def trainer(iteration, log=()):
    return types.SimpleNamespace(updater=types.SimpleNamespace(iteration=iteration),
                                 get_extension=lambda name: types.SimpleNamespace(log=list(log)))


def test_nothing_is_drawn_before_the_first_iteration(tmp_path):
    Plots(PLAN, tmp_path).initialize(trainer(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('recipe', PUBLISHED.values())
def test_schedule_is_drawn_when_the_first_curves_are_and_not_again(tmp_path, recipe):
    plots = Plots(dataclasses.replace(PLAN, recipe=recipe), tmp_path)
    plots(trainer(2))
    plots(trainer(PLAN.iterations))  # after the pictures before
    assert Image.open(tmp_path / 'schedule.png').size == (768, 480)
    (tmp_path / 'schedule.png').unlink()
    plots(trainer(PLAN.iterations))
    plots.finalize()
    assert not (tmp_path / 'schedule.png').exists()


def test_run_that_stops_in_its_first_epoch_has_its_schedule_drawn(tmp_path):
    Plots(PLAN, tmp_path).finalize()
    assert Image.open(tmp_path / 'schedule.png').size == (768, 480)


def test_curves_are_drawn_from_the_log(tmp_path):
    row = {'epoch': 1.0, 'main/loss': 2.0, 'validation/main/loss': 1.5, 'main/accuracy': 0.5,
           'validation/main/accuracy': 0.25}
    plots = Plots(PLAN, tmp_path)
    plots(trainer(2, [row]))
    plots.finalize()
    for name in ('loss.png', 'accuracy.png'):
        assert Image.open(tmp_path / name).size == (768, 480)


def test_pictures_are_not_drawn_at_every_short_epoch_but_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Plots, '_draw', lambda self, log: drawn.append(len(log)))
    plots = Plots(PLAN, tmp_path)
    for iteration in (2, 4, PLAN.iterations):
        plots(trainer(iteration, [{}] * iteration))
    plots.finalize()
    assert drawn == [2, PLAN.iterations]


def test_training_goes_on_while_pictures_are_drawn_and_waits_for_them_in_the_end(tmp_path, monkeypatch):
    went_on = threading.Event()

    def draw(figure, *arguments):
        assert went_on.wait(10)

    monkeypatch.setattr('extensions.plots._draw_curves', draw)
    plots = Plots(PLAN, tmp_path)
    plots(trainer(2))
    went_on.set()
    plots.finalize()
    assert all((tmp_path / name).exists() for name in ('loss.png', 'accuracy.png', 'schedule.png'))


def test_fault_of_drawing_is_told_and_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('extensions.plots._draw_curves', lambda *arguments: 1 / 0)
    plots = Plots(PLAN, tmp_path)
    plots(trainer(2))
    plots.finalize()
    assert [path.name for path in tmp_path.iterdir()] == ['schedule.png']
    told = capsys.readouterr().err.splitlines()
    assert [line.split('/')[-1] for line in told] == [
        f'{name} was not written (ZeroDivisionError: division by zero); training goes on'
        for name in ('loss.png', 'accuracy.png')]


def test_full_disk_does_not_end_the_training(tmp_path, capsys):
    (tmp_path / 'schedule.png').mkdir()
    Plots(PLAN, tmp_path).finalize()
    assert 'schedule.png was not written' in capsys.readouterr().err
