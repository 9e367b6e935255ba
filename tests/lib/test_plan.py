import dataclasses

from lib.errors import UserError
from lib.plan import Plan
from lib.recipe import PUBLISHED, Recipe

import pytest


def paper_plan(**changes):
    plan = Plan(recipe=PUBLISHED['paper'], arch='resnet50', insize=224, n_class=1000, stage_sizes=(25557032,),
                n_statistics=53120, n_train=1281167, n_val=50000, data='', workers=1024, processes=1024)
    return dataclasses.replace(plan, **changes)


def test_paper_job_has_the_published_sizes():
    plan = paper_plan()
    assert plan.total_batch == 32768
    assert plan.iterations == 3519
    assert plan.wire_bytes == 51114064


def test_paper_job_has_the_published_learning_rates():
    phases = paper_plan().phases()
    assert [row[:2] for row in phases] == [(0, 40), (40, 70), (70, 85), (85, 90)]
    assert [row[2] for row in phases] == pytest.approx([6.4, 0.96, 0.128, 0.0128], rel=1e-12)


@pytest.mark.parametrize('iteration, told', [
    (0, 'epoch 0, phase 0 to 40, eta 6.4'), (1564, 'epoch 40, phase 40 to 70, eta 0.96'),
    (3518, 'epoch 89.98, phase 85 to 90, eta 0.0128')])
def test_moment_of_an_iteration_names_its_phase(iteration, told):
    assert paper_plan().moment(iteration) == told


@pytest.mark.parametrize('change, words', [({'n_class': 1}, 'one class'), ({'n_train': 1023}, '1,023')])
def test_job_in_which_there_is_nothing_to_learn_is_refused(change, words):
    paper_plan(n_class=2, n_train=1024).check()
    with pytest.raises(UserError, match=words):
        paper_plan(**change).check()


def test_an_iteration_trains_at_the_epoch_of_the_images_seen_before_it():
    plan = paper_plan(n_train=320, workers=2)
    assert [plan.epoch_at(iteration) for iteration in (0, 1, 5)] == [0, 0.2, 1]


def test_goyal_job_warms_up_first():
    phases = paper_plan(recipe=PUBLISHED['goyal'], workers=256).phases()
    assert phases[0] == pytest.approx((0, 5, 0.1, 3.2))
    assert phases[1] == pytest.approx((5, 30, 3.2, 3.2))


def test_phases_agree_with_the_rates_of_the_iterations():
    for recipe in PUBLISHED.values():
        plan = paper_plan(recipe=recipe)
        for start, end, low, high in plan.phases():
            if low == high:
                inside = [plan.hyperparameters(t).lr for t in range(plan.iterations)
                          if start <= plan.epoch_at(t) < end]
                assert inside == pytest.approx([low] * len(inside), rel=1e-12)


@pytest.mark.parametrize('processes, blocks', [(8, [128] * 8), (7, [146, 146, 146, 147, 146, 146, 147])])
def test_processes_play_contiguous_blocks_of_workers_within_one_of_each_other(processes, blocks):
    plan = paper_plan(processes=processes)
    workers = [plan.workers_of(rank) for rank in range(processes)]
    assert [worker for block in workers for worker in block] == list(range(1024))
    assert sorted(map(len, workers)) == sorted(blocks)
    assert plan.virtual_workers == (min(blocks), max(blocks))
    assert plan.total_batch == 32768


def test_processes_do_not_enter_the_identity():
    assert paper_plan().identity() == paper_plan(processes=7).identity()


@pytest.mark.parametrize('change', [{'seed': 1}, {'workers': 512}, {'batch': 16}, {'arch': 'resnet8'},
                                    {'data': 'other'}, {'dtype': 'mixed16'}, {'n_train': 5}, {'n_val': 5},
                                    {'insize': 32}, {'n_class': 10}, {'allreduce_grad_dtype': 'float32'},
                                    {'loss_scale': 128}, {'jitter': True}, {'max_iterations': 4},
                                    {'recipe': PUBLISHED['goyal']},
                                    {'recipe': dataclasses.replace(PUBLISHED['paper'], epochs=30)}])
def test_what_changes_the_training_enters_the_identity(change):
    assert paper_plan().identity() != paper_plan(**change).identity()


def test_length_scales_with_a_fractional_number_of_epochs():
    recipe = Recipe('paper', 'continuous', 'slow-start', 'last', epochs=0.5)
    assert paper_plan(recipe=recipe, n_train=100, workers=1, batch=10).iterations == 5
