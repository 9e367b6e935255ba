import dataclasses
import json

from lib.plan import Plan
from lib.recipe import PUBLISHED, Recipe

import pytest


def paper_plan(**changes):
    plan = Plan(recipe=PUBLISHED['paper'], arch='resnet50', insize=224, n_class=1000, n_parameters=25557032,
                n_statistics=53120, n_train=1281167, n_val=50000, data='', workers=1024)
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


def test_virtual_workers_share_processes():
    plan = paper_plan(virtual_workers=128)
    assert (plan.workers, plan.processes, plan.total_batch) == (1024, 8, 32768)


def test_paper_job_deviates_in_the_transition_alone():
    deviations = paper_plan().deviations()
    assert len(deviations) == 1
    assert deviations[0].startswith('transition: continuous')


def test_printed_transition_is_no_longer_the_corrected_one():
    recipe = dataclasses.replace(PUBLISHED['paper'], transition='printed')
    assert not any('continuous' in text for text in paper_plan(recipe=recipe).deviations())


def test_goyal_plan_names_plain_momentum():
    assert any('Nesterov' in text for text in paper_plan(recipe=PUBLISHED['goyal']).deviations())


@pytest.mark.parametrize('change', [
    {'batch': 64}, {'workers': 8}, {'arch': 'resnet101'}, {'n_train': 1000},
    {'allreduce_grad_dtype': 'float32'}, {'loss_scale': 128}, {'dtype': 'mixed16'}, {'jitter': True},
    {'max_iterations': 3}, {'insize': 64}, {'initmodel': 'model.npz'}, {'synthetic': True},
    {'skip_bad_images': True},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], epochs=45)},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], eta_scale=2)},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], bn_statistics='last-local')},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], bn_variance='pooled')},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], schedule='goyal')},
])
def test_every_change_of_the_paper_job_is_a_named_deviation(change):
    assert len(paper_plan(**change).deviations()) == len(paper_plan().deviations()) + 1


def test_processes_do_not_enter_the_identity():
    assert paper_plan().identity() == paper_plan(virtual_workers=4).identity()


@pytest.mark.parametrize('change', [{'seed': 1}, {'workers': 512}, {'batch': 16}, {'arch': 'resnet8'},
                                    {'data': 'other'}, {'dtype': 'mixed16'}, {'n_train': 5},
                                    {'recipe': PUBLISHED['goyal']},
                                    {'recipe': dataclasses.replace(PUBLISHED['paper'], epochs=30)}])
def test_what_changes_the_training_enters_the_identity(change):
    assert paper_plan().identity() != paper_plan(**change).identity()


def test_plan_survives_json():
    told = paper_plan().as_dict()
    assert json.loads(json.dumps(told)) == told


def test_description_holds_the_hand_checked_values():
    text = paper_plan().describe()
    for value in ('32,768', '3,519', '12.8', '6.4 in epochs 0 to 40', '0.96 in epochs 40 to 70',
                  '0.128 in epochs 70 to 85', '0.0128 in epochs 85 to 90', '0.00915782', '25,557,032',
                  '51,114,064', '0.0001'):
        assert value in text


def test_length_scales_with_a_fractional_number_of_epochs():
    recipe = Recipe('paper', 'continuous', 'slow-start', 'last', epochs=0.5)
    assert paper_plan(recipe=recipe, n_train=100, workers=1, batch=10).iterations == 5


@pytest.mark.parametrize('transition, told', [
    ('continuous', '0.00915782 at epoch 0, 1/2 at 10 (beta_center), beta_period 5; 1 from 12.5'),
    ('printed', '1/2 at 10 (beta_center), beta_period 5; rises to 3/2, and is 1 from 12.5'),
    ('linear', '0 until 7.5, 1/2 at 10 (beta_center), 1 from 12.5'),
    ('sigmoid', '0.880797 at 12.5'),
    ('sudden', '0 until 10 (beta_center), 1 from there'),
    ('none', '1 throughout')])
def test_transition_is_described_as_it_is(transition, told):
    recipe = dataclasses.replace(PUBLISHED['paper'], transition=transition)
    assert told in paper_plan(recipe=recipe).describe()


def test_plan_json_holds_what_batch_normalization_and_weight_decay_do():
    told = paper_plan().as_dict()
    assert told['weight_decay'] == 1e-4 and 'gamma and beta' in told['weight_decay_exempt']
    assert 'own 32 images' in told['bn_training'] and 'last minibatch' in told['bn_validation']
