import dataclasses
import pathlib

from lib.data.datasets import ImageList
from lib.data.decoder_pool import ImagePool
from lib.data.decoding import load_training, load_validation
from lib.data.input import Input, open_sets
from lib.plan import Plan
from lib.recipe import PUBLISHED
from lib.sharding import worker_batch

import numpy as np
import pytest
from PIL import Image

INSIZE = 16
PLAN = Plan(recipe=PUBLISHED['paper'], arch='', insize=INSIZE, n_class=2, stage_sizes=(1,), n_statistics=0,
            n_train=6, n_val=6, data='', workers=1, processes=1)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    return ImageList(str(tmp_path), [f'{i}.png'.encode() for i in range(6)], np.arange(6))


def test_first_validation_images_of_the_next_time_are_decoded_while_training_goes_on(images):
    expected = [load_validation(images.path(i), INSIZE) for i in range(6)]
    with ImagePool(1) as pool:
        data = Input(PLAN, 0, pool, images, images, 2, 'error')
        for again in (True, False):
            batches = [(pixels.copy(), labels.tolist())
                       for pixels, labels in data.validation_batches(0, 6, again)]
            assert [labels for _, labels in batches] == [[0, 1], [2, 3], [4, 5]]
            assert np.array_equal(np.concatenate([pixels for pixels, _ in batches]), expected)
            if again:
                for _ in range(6):  # all that the ring holds
                    pool.receive()
                for i in range(6):
                    pathlib.Path(images.path(i)).unlink()


def test_of_several_shares_one_is_read_ahead(images):
    with ImagePool(1) as pool:
        data = Input(PLAN, 0, pool, images, images, 2, 'error')
        for _ in range(2):
            labels = [label for share in ((0, 2), (2, 4), (4, 6))
                      for _, batch in data.validation_batches(*share, again=True) for label in batch]
            assert labels == list(range(6))
        assert pool._decoder._memory._size == 2 * 8192  # rings of 3 batches, in whole pages: one is waiting


def test_a_process_reads_the_minibatches_of_its_workers_from_where_training_goes_on(images):
    plan = dataclasses.replace(PLAN, workers=4, processes=2, batch=2, seed=3, jitter=True, max_iterations=3)
    with ImagePool(0) as pool:
        data = Input(plan, 1, pool, images, images, 2, 'error')
        batches = [(pixels.copy(), labels.tolist()) for pixels, labels in data.training_batches(1)]
    shares = [worker_batch(t, worker, 4, 2, 6, 3) for t in (1, 2) for worker in (2, 3)]
    assert [labels for _, labels in batches] == [indices.tolist() for indices, _ in shares]
    for (pixels, _), (indices, epochs) in zip(batches, shares):
        expected = [load_training(images.path(i), INSIZE, 3, int(epoch), int(i), jitter=True)
                    for i, epoch in zip(indices, epochs)]
        assert np.array_equal(pixels, expected)


def test_bad_images_of_training_and_validation_are_on_record(images):
    bad = images.path(4)
    pathlib.Path(bad).write_bytes(b'no image')
    with ImagePool(0) as pool:
        data = Input(dataclasses.replace(PLAN, batch=6), 0, pool, images, images, 2, 'skip')
        next(data.training_batches(0))
        list(data.validation_batches(0, 6))
    assert [[path for path, *_ in skipped] for skipped in data.skipped] == [[bad], [bad]]


def test_paths_of_list_files_start_from_the_root(images, tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('0.png 0\n1.png 1\n')
    assert [len(images) for images in open_sets(str(path), str(path), images.root)] == [2, 2]


def test_synthetic_training_set_has_the_size_asked_for():
    assert len(open_sets(is_synthetic=True, n_train=700)[0]) == 700
