from lib.batch_statistics import BatchStatistics
from lib.checkpoint import directory, file, state, weights
from lib.errors import UserError
from lib.optimizers import RMSpropWarmup

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import models
from models import file_format
from models.small_resnet import SmallResNet
from tests.lib.checkpoint.examples import description

# What the blocks of ResNet-50 were called in files of format 1, in the order of execution.
RESNET50_BEFORE = {'res2': '021', 'res3': '0321', 'res4': '054321', 'res5': '021'}


class Network(SmallResNet):
    """So many blocks a stage that `10` sorts before `2`, with moving averages, a worker's own."""

    n = 11

    def __init__(self, seed):
        super().__init__(n_class=3, width=2, rng=np.random.RandomState(seed))
        for link in self.links():
            if isinstance(link, L.BatchNormalization):
                link.gamma.array[...] = 1  # else no branch is felt at first
        models.set_batch_normalization_decay(self, 0.5)


class NetworkBefore(Network):
    """The same one as it was: stages are Chainer's own Sequential, and files have no format."""

    def __init__(self, seed):
        super().__init__(seed)
        for name in ('res2', 'res3', 'res4'):
            blocks = list(getattr(self, name))
            delattr(self, name)
            with self.init_scope():
                setattr(self, name, chainer.Sequential(*blocks))

    def serialize(self, serializer):
        chainer.Chain.serialize(self, serializer)


class Training:
    """Two workers in one process, each with images of its own."""

    def __init__(self, model):
        self.model = model
        self.optimizer = RMSpropWarmup(lr=0.01, alpha_sgd=0.5, alpha_rmsprop=0.5).setup(model)
        self.statistics = BatchStatistics(model, 2)

    def step(self, seed):
        for worker in range(2):
            self.statistics.select(worker)
            self.model.cleargrads()
            F.sum(self.model(images(2 * seed + worker)) ** 2).backward()
        self.optimizer.update()

    def logits(self):
        """Of each worker's own statistics."""
        found = []
        for worker in range(2):
            with self.statistics.using(worker), chainer.using_config('train', False):
                found.append(self.model(images(99)).array)
        return np.stack(found)


def images(seed):
    return np.random.RandomState(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)


def weights_before(network):
    """What a network's weights file held, with the names of format 1."""
    arrays = chainer.serializers.npz.serialize(network)
    del arrays['format']
    before = {}
    for name, array in arrays.items():
        stage, *rest = name.split('/')
        if stage in RESNET50_BEFORE:
            rest[0] = RESNET50_BEFORE[stage][int(rest[0])]
        before['/'.join([stage, *rest])] = array
    return before


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        np.array_equal(arrays[name], others[name]) for name in arrays)


@pytest.mark.parametrize('n_blocks', [1, 2, 3, 4, 6, 8, 23, 36])
def test_names_before_are_those_that_chainers_sequential_gives(n_blocks):
    blocks = [L.Linear(1, 1) for _ in range(n_blocks)]
    chainer.Sequential(*blocks)
    assert [str(name) for name in file_format.names_before(n_blocks)] == [block.name for block in blocks]


def test_resnet50_of_a_file_written_before_gets_its_blocks_in_the_order_of_execution(tmp_path):
    written, loaded = models.build('resnet50', 3, seed=1), models.build('resnet50', 3, seed=2)
    np.savez(tmp_path / 'model.npz', **weights_before(written))
    lines = []
    weights.load(tmp_path / 'model.npz', loaded, report=lines.append)
    assert same(chainer.serializers.npz.serialize(loaded), chainer.serializers.npz.serialize(written))
    assert len(lines) == 1 and 'model.npz' in lines[0] and 'renamed' in lines[0]


@pytest.mark.parametrize('save', [weights.save, chainer.serializers.save_npz])
@pytest.mark.parametrize('load', [weights.load, chainer.serializers.load_npz])
def test_weights_written_today_keep_their_names(tmp_path, save, load):
    written, loaded = Network(1), Network(2)
    save(tmp_path / 'model.npz', written)
    with np.load(tmp_path / 'model.npz') as arrays:
        assert arrays['format'] == 2
    load(tmp_path / 'model.npz', loaded)
    assert same(chainer.serializers.npz.serialize(loaded), chainer.serializers.npz.serialize(written))


def test_networks_whose_names_never_changed_are_loaded_without_a_word(tmp_path):
    written, loaded = models.build('resnet8', 3, seed=1), models.build('resnet8', 3, seed=2)
    arrays = chainer.serializers.npz.serialize(written)
    del arrays['format']
    np.savez(tmp_path / 'model.npz', **arrays)
    weights.load(tmp_path / 'model.npz', loaded, report=pytest.fail)
    assert same(chainer.serializers.npz.serialize(loaded), chainer.serializers.npz.serialize(written))


def test_chainers_own_loading_asks_a_file_for_no_format(tmp_path):
    written, loaded = models.build('resnet8', 3, seed=1), models.build('resnet8', 3, seed=2)
    arrays = chainer.serializers.npz.serialize(written)
    del arrays['format']
    np.savez(tmp_path / 'model.npz', **arrays)
    chainer.serializers.load_npz(tmp_path / 'model.npz', loaded)
    assert same(chainer.serializers.npz.serialize(loaded), chainer.serializers.npz.serialize(written))


def test_entries_without_stages_stay_as_they_are():
    assert file_format.to_current('a.npz', {'fc/W': np.zeros(3)}, report=pytest.fail).keys() == {'fc/W'}


def test_a_checkpoint_written_before_continues_to_the_same_bits(tmp_path):
    before = Training(NetworkBefore(1))
    before.step(0)
    arrays = state.flatten(before.model, before.optimizer)
    arrays['workers/statistics'] = before.statistics.rows_on_host()
    assert 'model/format' not in arrays
    file.write(tmp_path / 'a.npz', arrays, description())

    resumed = Training(Network(2))
    arrays, _ = file.read(tmp_path / 'a.npz')
    state.restore(arrays, resumed.model, resumed.optimizer)
    resumed.statistics.restore_rows(arrays['workers/statistics'])
    np.testing.assert_array_equal(resumed.logits(), before.logits())
    before.step(1)
    resumed.step(1)
    np.testing.assert_array_equal(resumed.logits(), before.logits())


def test_a_checkpoint_written_today_is_read_as_it_was_written(tmp_path):
    training = Training(Network(1))
    training.step(0)
    arrays = state.flatten(training.model, training.optimizer)
    arrays['workers/statistics'] = training.statistics.rows_on_host()
    file.write(tmp_path / 'a.npz', arrays, description())
    assert same(file.read(tmp_path / 'a.npz')[0], arrays)


def test_a_newer_format_is_refused_by_name_and_never_passed_over(tmp_path):
    model = Network(0)
    optimizer = RMSpropWarmup(lr=0.01).setup(model)
    arrays = state.flatten(model, optimizer)
    file.write(directory.path_of(tmp_path, 1), arrays, description())
    newer = directory.path_of(tmp_path, 2)
    file.write(newer, {**arrays, 'model/format': np.array(3)}, description())
    saved = tmp_path / 'model.npz'
    np.savez(saved, **{**chainer.serializers.npz.serialize(model), 'format': 3})
    for path, load in ((newer, lambda: directory.newest_valid(tmp_path, pytest.fail)),
                       (newer, lambda: file.read(newer)),
                       (saved, lambda: weights.load(saved, model))):
        with pytest.raises(UserError, match='format 3.* up to 2') as caught:
            load()
        assert str(path) in str(caught.value) and 'newer' in str(caught.value)
        assert '\n' not in str(caught.value)
    directory.prune(tmp_path, 1)
    assert directory.list_checkpoints(tmp_path) == [newer]
