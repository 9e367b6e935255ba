from lib.run import arguments

import pytest


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        arguments.parse(list(words))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    return message


def test_defaults_are_those_of_the_paper_and_of_chainers_example():
    args = arguments.parse([])
    assert (args.recipe, args.batchsize, args.virtual_workers, args.epoch) == ('paper', 32, 1, 90)
    assert (args.out, args.seed, args.val_batchsize) == ('result', 0, 250)
    assert args.allreduce_grad_dtype == 'float16'


@pytest.mark.parametrize('words, value', [
    (['--batchsize', '0'], "'0'"),
    (['--batchsize', 'many'], "'many'"),
    (['--virtual-workers', '-1'], "'-1'"),
    (['--epoch', '0'], "'0'"),
    (['--epoch', 'inf'], "'inf'"),
    (['--epoch', '1e300'], "'1e300'"),
    (['--stall-timeout', '1e10'], "'1e10'"),
    (['--insize', '1000000000'], "'1000000000'"),
    (['--batchsize', f'{10**29}'], 'from 1 to 1048576'),
    (['--val-batchsize', f'{10**24}'], 'from 1 to 1048576'),
    (['--synthetic', '--n-train', f'{10**29}'], 'from 1 to 2147483647'),
    (['--seed', '-1'], "'-1'"),
    (['--loss-scale', 'nan'], "'nan'"),
    (['--transition', 'abrupt'], "'abrupt'"),
    (['--no-such-option'], '--no-such-option'),
    (['--batch', '3'], '--batch'),
    (['data'], "'data'"),
    (['a', 'b', 'c'], 'c'),
    (['a', 'b', '--synthetic'], '--synthetic'),
    (['--workers', '8', '--virtual-workers', '2'], '--workers 8'),
    (['--n-train', '8'], '--n-train'),
    (['--plan', '--workers', '7', '--virtual-workers', '2'], '7'),
    (['--force', '--resume', 'auto'], '--force'),
])
def test_mistake_is_named_on_one_line(capsys, words, value):
    assert value in refusal(capsys, *words)


@pytest.mark.parametrize('word, meant', [('--epochs', '--epoch'), ('--batch-size=3', '--batchsize'),
                                         ('--recipy', '--recipe')])
def test_misspelt_option_gets_the_one_that_was_meant(capsys, word, meant):
    assert f'{word}; did you mean {meant}? (' in refusal(capsys, word)


def test_word_that_is_no_option_gets_none(capsys):
    assert 'did you mean' not in refusal(capsys, 'a', 'b', 'c')


def test_loaders_are_limited(capsys):
    assert "'100000' is not an integer from 0 to 256" in refusal(capsys, '-j', '100000')


@pytest.mark.parametrize('words, imagenet', [
    (['--plan'], False), (['--plan', '--workers', '8'], True), (['--plan', '--n-train', '8'], True),
    (['--plan', '--workers', '8', 'a', 'b'], False)])
def test_plan_of_other_workers_without_data_is_of_imagenet(words, imagenet):
    assert arguments.plans_imagenet(arguments.parse(words)) == imagenet


def test_other_ranks_leave_silently(capsys, monkeypatch):
    monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '3')
    monkeypatch.setattr(arguments, 'SECONDS_FOR_RANK_0', 0)
    with pytest.raises(SystemExit) as exit_:
        arguments.parse(['--batchsize', '0'])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == ''


def test_tf32_that_the_environment_forbids_is_refused(capsys, monkeypatch):
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
    assert not arguments.parse([]).tf32
    with pytest.raises(SystemExit) as exit_:
        arguments.parse(['--tf32'])
    assert exit_.value.code == 2 and 'NVIDIA_TF32_OVERRIDE=0' in capsys.readouterr().err
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '1')
    assert arguments.parse(['--tf32']).tf32


def test_epochs_keep_their_kind():
    assert isinstance(arguments.parse(['-E', '12']).epoch, int)
    assert arguments.parse(['-E', '0.5']).epoch == 0.5


def test_recipe_is_the_published_one():
    recipe = arguments.chosen_recipe(arguments.parse(['--recipe', 'goyal']))
    assert (recipe.transition, recipe.schedule, recipe.bn_statistics) == ('none', 'goyal', 'moving')


def test_one_part_of_a_recipe_is_exchanged_alone():
    recipe = arguments.chosen_recipe(arguments.parse(['--transition', 'sudden', '--eta-scale', '2']))
    assert (recipe.transition, recipe.schedule, recipe.bn_statistics) == ('sudden', 'slow-start', 'last')
    assert recipe.eta_scale == 2


def test_an_unknown_word_is_shown_with_what_a_terminal_would_obey_escaped(capsys):
    with pytest.raises(SystemExit):
        arguments.parse(['--\x1b[31mfoo'])
    err = capsys.readouterr().err
    assert r'unrecognized arguments: --\x1b[31mfoo' in err and '\x1b' not in err


def test_help_tells_no_default_of_a_switch(capsys):
    with pytest.raises(SystemExit):
        arguments.parse(['--help'])
    out = capsys.readouterr().out
    assert '--no-overlap' in out and '(True)' not in out and '(False)' not in out


def test_help_names_every_option_of_the_manual(capsys):
    with pytest.raises(SystemExit) as exit_:
        arguments.parse(['--help'])
    assert exit_.value.code == 0
    told = capsys.readouterr().out
    options = """--root --synthetic --recipe --arch --insize --batchsize --virtual-workers --epoch --loaderjob
        --val-batchsize --out --seed --resume --initmodel --communicator --allreduce-grad-dtype --loss-scale
        --bn-statistics --bn-variance --transition --schedule --eta-scale --dtype --loader --jitter
        --tensorboard --checkpoint-interval --stall-timeout --on-bad-image --force --plan --workers --n-train
        --test"""
    for option in options.split():
        assert option in told
