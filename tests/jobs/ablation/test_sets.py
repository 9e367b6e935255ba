"""The declarations: options that the training knows, comparisons of arms that there are."""

import shlex

from lib import sharding
from lib.run import arguments

import pytest

from jobs.ablation.claims import CLAIMS, MEASURES, Choice
from jobs.ablation.sets import SETS

ARMS = [pytest.param(declared, arm, id=f'{declared.name}-{arm.name}')
        for declared in SETS.values() for arm in declared.arms.values()]
ITERATIONS = {'short': 49, 'long': 1172, 'long-shallow': 1172, 'longest': 3516}


def options(declared, arm, eta_scale=1):
    return arguments.parse(['train', 'val', *shlex.split(declared.command(arm, eta_scale, 3))])


@pytest.mark.parametrize('declared, arm', ARMS)
def test_options_of_every_arm_are_options_of_the_training(declared, arm):
    parsed = options(declared, arm, 16)
    assert parsed.seed == 3 and arguments.chosen_recipe(parsed).eta_scale == 16


@pytest.mark.parametrize('declared', SETS.values(), ids=list(SETS))
def test_a_set_is_as_long_as_it_says_on_10000_images(declared):
    parsed = options(declared, declared.arms['paper'])
    minibatch = parsed.batchsize * parsed.virtual_workers
    assert sharding.n_iterations(parsed.epoch, 10000, minibatch) == ITERATIONS[declared.name]


@pytest.mark.parametrize('declared', SETS.values(), ids=list(SETS))
def test_what_is_compared_was_declared(declared):
    numbers = {claim.number for claim in CLAIMS}
    for number, comparisons in declared.comparisons.items():
        assert number in numbers
        for comparison in comparisons:
            assert comparison.arm in declared.arms and comparison.reference in declared.arms
            assert comparison.measure in MEASURES and comparison.measure in declared.margins
    assert set(declared.transition) <= set(declared.arms)


@pytest.mark.parametrize('declared, arm', ARMS)
def test_a_rate_is_chosen_with_a_seed_that_does_not_count(declared, arm):
    if isinstance(arm.eta_scale, Choice):
        assert arm.eta_scale.seed in SETS[arm.eta_scale.of or declared.name].explored
    assert not set(arm.seeds or declared.seeds) & set(declared.explored)


@pytest.mark.parametrize('name', SETS)
def test_every_arm_differs_from_the_baseline_as_its_name_says(name):
    def recipe(arm):
        parsed = options(SETS[name], arm)
        chosen = arguments.chosen_recipe(parsed)
        return {'transition': chosen.transition, 'schedule': chosen.schedule, 'bn': chosen.bn_statistics,
                'wire': parsed.allreduce_grad_dtype, 'workers': parsed.virtual_workers,
                'loss_scale': parsed.loss_scale}

    arms = {arm.name: recipe(arm) for arm in SETS[name].arms.values()}
    exchanged = {arm: {key: value for key, value in parts.items() if value != arms['paper'][key]}
                 for arm, parts in arms.items()}
    goyal = {'transition': 'none', 'schedule': 'goyal', 'bn': 'moving'}
    by_name = {
        'goyal-32': {**goyal, 'workers': 1}, 'goyal-32-linear': {**goyal, 'workers': 1},
        'goyal-64': {**goyal, 'workers': 2}, 'goyal-64-unscaled': {**goyal, 'workers': 2},
        'goyal-256': {**goyal, 'workers': 8} if name == 'short' else goyal,
        'goyal-1024': goyal, 'goyal-1024-unscaled': goyal, 'paper': {}, 'paper-eta32': {}, 'paper-eta16': {},
        'no-warmup': {'transition': 'none'}, 'no-warmup-eta32': {'transition': 'none'},
        'no-warmup-eta16': {'transition': 'none'}, 'sudden': {'transition': 'sudden'},
        'linear': {'transition': 'linear'}, 'sigmoid': {'transition': 'sigmoid'},
        'printed': {'transition': 'printed'}, 'goyal-schedule': {'schedule': 'goyal'},
        'moving': {'bn': 'moving'}, 'last-local': {'bn': 'last-local'}, 'fp32': {'wire': 'float32'},
        'paper-loss-scale': {'loss_scale': 128}}
    assert exchanged == {arm: by_name[arm] for arm in exchanged}


def test_every_arm_of_the_short_set_takes_part_in_a_claim():
    short = SETS['short']
    assert {name for claim in CLAIMS for name in short.claim_arms(claim.number)} == set(short.arms)
