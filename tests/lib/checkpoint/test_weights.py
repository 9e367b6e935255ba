"""Weights, and what they tell of the network they are of."""

import os
import pickle
import signal
import types

from lib.checkpoint import directory, file, state, weights
from lib.errors import UserError
from lib.optimizers import RMSpropWarmup

import chainer
import chainer.links as L
import numpy as np
import pytest

import models
from tests.lib.checkpoint.examples import Network, description, foreign_files, same

DESCRIPTION = {'arch': 'resnet8', 'insize': 24, 'dtype': 'float32', 'n_class': 3,
               'classes': ['ant', 'b\udcffe', 'cat'], 'image_mean': [0.485, 0.456, 0.406],
               'image_std': [0.229, 0.224, 0.225], 'val_batchsize': 7}


def values(model):
    return chainer.serializers.npz.serialize(model)


@pytest.mark.parametrize('description', [None, DESCRIPTION])
@pytest.mark.parametrize('load', [weights.load, chainer.serializers.load_npz])
def test_weights_round_trip_and_chainer_reads_them(tmp_path, description, load):
    written, loaded = models.build('resnet8', 3, seed=1), models.build('resnet8', 3, seed=2)
    weights.save(tmp_path / 'model.npz', written, description)
    load(tmp_path / 'model.npz', loaded)
    assert same(values(loaded), values(written))
    assert os.listdir(tmp_path) == ['model.npz']


def test_the_description_holds_what_images_are_normalized_with():
    plan = types.SimpleNamespace(arch='resnet8', insize=24, dtype='float32', n_class=3)
    assert weights.describe(plan, DESCRIPTION['classes'], val_batchsize=7) == DESCRIPTION


def test_the_description_travels_whole(tmp_path):
    weights.save(tmp_path / 'model.npz', models.build('resnet8', 3), DESCRIPTION)
    assert weights.read(tmp_path / 'model.npz').description == DESCRIPTION


def test_weights_that_chainer_wrote_are_cast_to_the_networks_dtype(tmp_path):
    model = Network()
    chainer.serializers.save_npz(tmp_path / 'model.npz', model)
    half = Network(dtype=chainer.mixed16)
    weights.load(tmp_path / 'model.npz', half)
    assert half.fc.W.dtype == np.float16
    np.testing.assert_array_equal(half.fc.W.array, model.fc.W.array.astype(np.float16))


def test_weights_for_another_number_of_classes_name_both_and_the_remedy(tmp_path):
    weights.save(tmp_path / 'model.npz', Network(n_out=5))
    with pytest.raises(UserError, match='weights for 5 classes, .* has 3; .*--initmodel-skip fc') as error:
        weights.load(tmp_path / 'model.npz', Network(n_out=3))
    assert 'model.npz' in str(error.value) and '\n' not in str(error.value)


def test_weights_of_other_shapes_name_them(tmp_path):
    weights.save(tmp_path / 'model.npz', L.Linear(4, 5))
    with pytest.raises(UserError, match=r"W has shape \(3, 4\), the file's is \(5, 4\); b has"):
        weights.load(tmp_path / 'model.npz', L.Linear(4, 3))


def test_weights_of_another_network_name_what_is_missing_and_left_over(tmp_path):
    np.savez(tmp_path / 'other.npz', **{'conv/W': np.zeros(1)})
    with pytest.raises(UserError, match='bn/N is not in the file.* and 5 more'):
        weights.load(tmp_path / 'other.npz', Network())


def test_a_layer_that_is_skipped_keeps_its_own_values(tmp_path):
    written, loaded = models.build('resnet8', 5, seed=1), models.build('resnet8', 3, seed=2)
    weights.save(tmp_path / 'model.npz', written)
    before = values(loaded)
    weights.load(tmp_path / 'model.npz', loaded, 'fc')
    after, given = values(loaded), values(written)
    assert all(np.array_equal(after[name], (before if name.startswith('fc/') else given)[name])
               for name in after)


def test_a_layer_to_skip_that_is_none_is_refused_with_their_names(tmp_path):
    weights.save(tmp_path / 'model.npz', models.build('resnet8', 3))
    with pytest.raises(UserError, match='classifier.*bn1, conv1, fc, res2, res3, res4$'):
        weights.load(tmp_path / 'model.npz', models.build('resnet8', 3), 'classifier')


def test_files_that_are_no_weights_are_user_errors(tmp_path):
    np.savez(tmp_path / 'description.npz', description=np.array('no JSON'))
    for path in foreign_files(tmp_path):
        with pytest.raises(UserError) as caught:
            weights.load(path, Network())
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.kill, (os.getpid(), signal.SIGKILL)

    np.savez(tmp_path / 'trap.npz', **{'fc/W': np.array([Trap()], object)})
    (tmp_path / 'trap.pkl').write_bytes(pickle.dumps(Trap()))
    for name in ('trap.npz', 'trap.pkl'):
        with pytest.raises(UserError):
            weights.load(tmp_path / name, Network())
        with pytest.raises(file.DamagedCheckpoint):
            file.read(tmp_path / name)


@pytest.fixture
def run(tmp_path):
    """A run without model.npz yet: checkpoints of iterations 1 and 2, with their networks."""
    networks = {}
    for iteration in (1, 2):
        model = networks[iteration] = models.build('resnet8', 3, seed=iteration)
        optimizer = RMSpropWarmup(lr=0.01).setup(model)
        job = {'arch': 'resnet8', 'insize': 24, 'dtype': 'float32', 'n_class': 3, 'seed': 0, 'iterations': 2}
        network = {'network': DESCRIPTION} if iteration == 2 else {}
        file.write(directory.path_of(tmp_path, iteration), state.flatten(model, optimizer),
                   description(iteration, job=job, **network))
    return types.SimpleNamespace(out=tmp_path, networks=networks)


def test_a_run_without_weights_gives_those_of_its_newest_checkpoint(run):
    loaded = models.build('resnet8', 3)
    weights.load(run.out, loaded)
    assert same(values(loaded), values(run.networks[2]))
    assert weights.read(run.out).description == DESCRIPTION


def test_a_finished_run_gives_its_weights(run):
    written, loaded = models.build('resnet8', 3, seed=3), models.build('resnet8', 3)
    weights.save(run.out / 'model.npz', written)
    weights.load(run.out, loaded)
    assert same(values(loaded), values(written))


def test_a_checkpoint_gives_its_weights_and_an_older_one_all_but_the_names(run):
    loaded = models.build('resnet8', 3)
    weights.load(directory.path_of(run.out, 1), loaded)
    assert same(values(loaded), values(run.networks[1]))
    told = weights.complete(weights.read(directory.path_of(run.out, 1)))
    assert told['classes'] is None and (told['arch'], told['insize'], told['n_class']) == ('resnet8', 24, 3)


def test_a_directory_with_neither_is_refused(tmp_path):
    with pytest.raises(UserError, match='neither model.npz nor a checkpoint'):
        weights.read(tmp_path)


def described(description, n_class=3):
    return weights.Weights('model.npz', {'fc/b': np.zeros(n_class)}, description)


def test_weights_that_tell_nothing_ask_for_the_network():
    with pytest.raises(UserError, match='add --arch, one of resnet8, '):
        weights.complete(described(None))
    told = weights.complete(described(None, 10), 'resnet8')
    assert (told['arch'], told['insize'], told['n_class']) == ('resnet8', 32, 10)


def test_the_users_input_size_replaces_that_of_training():
    assert weights.complete(described(DESCRIPTION), insize=48)['insize'] == 48


@pytest.mark.parametrize('changed, arch, message', [
    ({}, 'resnet20', 'weights of resnet8, not of --arch resnet20'),
    ({'arch': 'alexnet'}, None, 'weights of alexnet'),
    ({'image_mean': [0.5, 0.5, 0.5]}, None, r'image_mean \[0.5, 0.5, 0.5\], and this program'),
    ({'n_class': 10 ** 7, 'classes': None}, None, 'for 3 classes, and its description tells 10000000'),
    ({'insize': 1}, None, 'an input of 1 pixels, and resnet8 takes 8 or more'),
    ({'image_std': [1.0, 1.0, 1.0]}, None, r'image_std \[1.0, 1.0, 1.0\], and this program'),
])
def test_a_network_that_this_program_would_not_evaluate_rightly_is_refused(changed, arch, message):
    with pytest.raises(UserError, match=message):
        weights.complete(described({**DESCRIPTION, **changed}), arch)


def test_a_network_is_built_in_the_precision_that_it_was_trained_in():
    before = chainer.global_config.dtype
    try:
        model = weights.build({**DESCRIPTION, 'dtype': 'mixed16'})
        assert model.fc.W.dtype == np.float16 and chainer.global_config.dtype == chainer.mixed16
    finally:
        chainer.global_config.dtype = before


@pytest.mark.parametrize('forged', [
    [], 'text', {'arch': 1}, {'insize': '24'}, {'insize': 0}, {'n_class': 10 ** 12}, {'dtype': 'object'},
    {'val_batchsize': 'x'}, {'val_batchsize': 0}, {'val_batchsize': 2.5}, {'val_batchsize': None},
    {'val_batchsize': 10 ** 30},
    {'n_class': 3, 'classes': ['a', 'b']}, {'n_class': 1, 'classes': [[]]}])
def test_a_description_that_no_run_has_written_is_a_user_error(tmp_path, forged):
    weights.save(tmp_path / 'model.npz', models.build('resnet8', 3), forged)
    with pytest.raises(UserError, match='its description is none of a network'):
        weights.read(tmp_path / 'model.npz')
    job = {'arch': 'resnet8', 'insize': 24, 'dtype': 'float32', 'n_class': 3}
    file.write(tmp_path / 'checkpoint.npz', {}, description(job=job, network=forged))
    with pytest.raises(UserError, match='its description is none of a network'):
        weights.read(tmp_path / 'checkpoint.npz')
