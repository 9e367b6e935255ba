"""The plan in words and as JSON, and the summary of a run."""

import dataclasses
import json
import types

from lib.plan import Plan
from lib.recipe import PUBLISHED
from lib.run import description

import pytest

PLAN = types.SimpleNamespace(iterations=30, total_batch=64)


def row(iteration, accuracy, **times):
    return {'iteration': iteration, 'elapsed_time': 9.5, 'validation/main/accuracy': accuracy, **times}


def test_shares_are_weighted_by_the_rows_iterations():
    log = [row(10, 0.5, iteration_time=1.0, allreduce_time=0.5, data_time=0.0),
           row(30, 0.4, iteration_time=2.0, allreduce_time=0.0, data_time=0.5)]
    told = description.summarize(PLAN, log)
    # 10 x 1 s + 20 x 2 s = 50 s; 5 s of all-reduce, 10 s of data.
    assert '70% computation, 10% communication, 20% waiting for data' in told
    assert f'{30 * 64 / 50:.0f} images/s' in told


def test_last_and_best_accuracy_are_told():
    times = dict(iteration_time=1.0, allreduce_time=0.0, data_time=0.0)
    told = description.summarize(PLAN, [row(10, 0.5, **times), row(30, 0.4, **times)])
    assert '0.4000 at the end, 0.5000 at best (validation 1 of 2)' in told


def test_run_without_validation_images_has_no_accuracy():
    assert 'accuracy' not in description.summarize(PLAN, [{'iteration': 30, 'elapsed_time': 1.0}])


def paper_plan(**changes):
    plan = Plan(recipe=PUBLISHED['paper'], arch='resnet50', insize=224, n_class=1000, stage_sizes=(25557032,),
                n_statistics=53120, n_train=1281167, n_val=50000, data='', workers=1024, processes=1024)
    return dataclasses.replace(plan, **changes)


def in_one_line(text):
    return ' '.join(text.split())


def test_paper_job_names_every_deviation_of_the_manual():
    found = [text.split(':')[0] for text in description.deviations(paper_plan())]
    assert found == ['transition', 'first iteration', 'CPU', 'mean', 'sum', 'underflow']
    found = [text.split(':')[0] for text in description.readings(paper_plan())]
    assert found == ['batch normalization', 'crops', 'start', 'weight decay']


def test_processes_that_play_several_workers_round_for_them():
    deviations = description.deviations(paper_plan(processes=8))
    assert any(text.startswith('rounding: ') and '128 workers' in text for text in deviations)


def test_float32_on_the_wire_does_not_deviate_as_float16_does():
    deviations = description.deviations(paper_plan(allreduce_grad_dtype='float32'))
    assert {text.split(':')[0] for text in deviations}.isdisjoint({'mean', 'sum', 'underflow'})


def test_plain_momentum_has_no_reading_of_rmsprop():
    assert not any('RMSprop' in text for text in description.readings(paper_plan(recipe=PUBLISHED['goyal'])))


def test_plan_fits_eighty_columns():
    assert max(map(len, description.describe(paper_plan(processes=8)).splitlines())) <= 80


def test_printed_transition_is_no_longer_the_corrected_one():
    recipe = dataclasses.replace(PUBLISHED['paper'], transition='printed')
    assert not any('continuous' in text for text in description.deviations(paper_plan(recipe=recipe)))


def test_goyal_plan_names_plain_momentum():
    assert any('Nesterov' in text for text in description.deviations(paper_plan(recipe=PUBLISHED['goyal'])))


@pytest.mark.parametrize('change', [
    {'batch': 64}, {'workers': 8}, {'arch': 'resnet101'}, {'n_train': 1000},
    {'allreduce_grad_dtype': 'float32'}, {'loss_scale': 128}, {'dtype': 'mixed16'}, {'tf32': True},
    {'jitter': True},
    {'max_iterations': 3}, {'insize': 64}, {'initmodel': 'model.npz'}, {'synthetic': True},
    {'skip_bad_images': True},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], epochs=45)},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], eta_scale=2)},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], bn_statistics='last-local')},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], bn_variance='pooled')},
    {'recipe': dataclasses.replace(PUBLISHED['paper'], schedule='goyal')},
])
def test_every_change_of_the_paper_job_is_a_named_deviation(change):
    added = set(description.deviations(paper_plan(**change))) - set(description.deviations(paper_plan()))
    assert len(added) == 1


def test_plan_survives_json():
    told = description.as_dict(paper_plan())
    assert json.loads(json.dumps(told)) == told


def test_description_holds_the_hand_checked_values():
    text = in_one_line(description.describe(paper_plan()))
    for value in ('32,768', '3,519', '12.8', '6.4 in epochs 0 to 40', '0.96 in epochs 40 to 70',
                  '0.128 in epochs 70 to 85', '0.0128 in epochs 85 to 90', '0.00915782', '25,557,032',
                  '51,114,064', '0.0001'):
        assert value in text


@pytest.mark.parametrize('transition, told', [
    ('continuous', '0.00915782 at epoch 0, 1/2 at 10 (beta_center), beta_period 5; 1 from 12.5'),
    ('printed', '1/2 at 10 (beta_center), beta_period 5; rises to 3/2, and is 1 from 12.5'),
    ('linear', '0 until 7.5, 1/2 at 10 (beta_center), 1 from 12.5'),
    ('sigmoid', '0.880797 at 12.5'),
    ('sudden', '0 until 10 (beta_center), 1 from there'),
    ('none', '1 throughout')])
def test_transition_is_described_as_it_is(transition, told):
    recipe = dataclasses.replace(PUBLISHED['paper'], transition=transition)
    assert told in in_one_line(description.describe(paper_plan(recipe=recipe)))


def test_plan_json_holds_what_batch_normalization_and_weight_decay_do():
    told = description.as_dict(paper_plan())
    assert told['weight_decay'] == 1e-4 and 'gamma and beta' in told['weight_decay_exempt']
    assert 'own 32 images' in told['bn_training'] and 'last minibatch' in told['bn_validation']
