import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

from lib.data import sample_set
from lib.data.datasets import open_pair
from lib.errors import UserError

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[3]
SMALL = """
import sys
from lib.data import sample_set
sample_set.TRAIN_PER_CLASS, sample_set.VAL_PER_CLASS = 3, 2
draw = sample_set.draw
"""
COUNT = """
def count(name, index):
    print(index)
    return draw(name, index)
sample_set.draw = count
"""


def start(cache, *code):
    """Starts a process that makes a small set (50 images) in ``cache``, after running ``code``."""
    program = '\n'.join([SMALL, *code, 'sample_set.ensure_sample_set()'])
    return subprocess.Popen([sys.executable, '-c', program], cwd=ROOT,
                            env={**os.environ, 'XDG_CACHE_HOME': str(cache)}, text=True,
                            stdout=subprocess.PIPE)


def files(cache):
    """Relative path and digest of every image in ``cache``."""
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in cache.rglob('*.JPEG')}


@pytest.fixture(scope='session')
def whole_set(tmp_path_factory):
    return sample_set.ensure_sample_set(str(tmp_path_factory.mktemp('cache')))


@pytest.fixture(scope='session')
def pair(whole_set):
    return open_pair(*whole_set)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sample_set, 'TRAIN_PER_CLASS', 3)
    monkeypatch.setattr(sample_set, 'VAL_PER_CLASS', 2)


def test_set_is_as_large_as_its_constants_say(pair):
    train, val = pair
    assert len(train) == sample_set.N_TRAIN >= 2000
    assert len(val) == sample_set.N_VAL >= 400
    assert tuple(train.class_names) == tuple(val.class_names) == sample_set.CLASSES
    assert len(sample_set.CLASSES) >= 10


def test_classes_are_of_equal_size(pair):
    for images in pair:
        assert len(set(np.bincount(images.labels, minlength=images.n_class))) == 1


def test_files_are_jpeg_of_many_sizes_shapes_and_modes(pair):
    sizes, modes = set(), set()
    for i in range(0, len(pair[0]), 4):
        with Image.open(pair[0].path(i)) as image:
            assert image.format == 'JPEG'
            sizes.add(image.size)
            modes.add(image.mode)
    assert len(sizes) > 200
    assert sum(width > height for width, height in sizes) > 100
    assert sum(width < height for width, height in sizes) > 50
    assert all(64 <= min(size) and max(size) <= 200 for size in sizes)
    assert modes <= {'RGB', 'L'}


def test_some_files_are_grayscale():
    modes = [sample_set.draw('dots', index).mode for index in range(120)]
    assert modes.count('L') == 2


def test_no_validation_image_is_a_training_image(pair):
    contents = [{pathlib.Path(images.path(i)).read_bytes() for i in range(len(images))} for images in pair]
    assert [len(some) for some in contents] == [len(images) for images in pair]
    assert not contents[0] & contents[1]


def squares(images, side):
    """The middle square of each image, as the rows of a float32 matrix."""
    rows = np.empty((len(images), side * side * 3), np.float32)
    for i in range(len(images)):
        with Image.open(images.path(i)) as image:
            width, height = image.size
            short = min(image.size)
            x, y = (width - short) / 2, (height - short) / 2
            square = image.convert('RGB').resize((side, side), Image.BILINEAR, (x, y, x + short, y + short))
        rows[i] = np.asarray(square).reshape(-1)
    return rows


def softmax_regression(x, labels, l2, n_steps):
    """Weights of multinomial logistic regression on ``x``, by accelerated gradient descent."""
    target = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    step = np.float32(1 / (0.5 * np.linalg.norm(x, 2) ** 2 / len(x) + l2))
    weights = ahead = np.zeros((x.shape[1], target.shape[1]), np.float32)
    for t in range(n_steps):
        scores = x @ ahead
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        new = ahead - step * (x.T @ (scores - target) / len(x) + l2 * ahead)
        weights, ahead = new, new + np.float32(t / (t + 3)) * (new - weights)
    return weights


def test_linear_classifier_on_pixels_stays_under_half(pair):
    train, val = (squares(images, 16) for images in pair)
    mean, std = train.mean(axis=0), train.std(axis=0)
    train, val = (train - mean) / std, (val - mean) / std
    accuracies = []
    for l2 in (0.01, 0.1, 1.0):
        weights = softmax_regression(train, pair[0].labels, l2, n_steps=100)
        accuracies.append(np.mean((val @ weights).argmax(axis=1) == pair[1].labels))
    assert max(accuracies) < 0.4


@pytest.mark.parametrize('name, size, color', [
    ('blobs', (81, 105), (150.23, 135.56, 100.14)), ('bricks', (102, 98), (98.02, 104.81, 115.65)),
    ('checks', (127, 86), (111.29, 151.37, 110.69)), ('crosses', (99, 139), (98.62, 123.76, 145.9)),
    ('dots', (118, 90), (166.08, 177.69, 130.39)), ('honeycomb', (93, 92), (126.64, 123.63, 123.66)),
    ('rays', (98, 99), (153.05, 119.26, 131.5)), ('rings', (110, 148), (133.5, 133.5, 133.5)),
    ('stripes', (105, 88), (142.57, 139.27, 109.72)), ('zigzags', (118, 104), (136.08, 110.21, 125.64)),
])
def test_images_are_the_published_ones(name, size, color):
    # Of version 2, fixed forever. Means, since the sine of a float32 ends differently on other processors.
    assert sample_set.VERSION == 2
    image = sample_set.draw(name, 61 * sample_set.CLASSES.index(name))
    assert image.size == size
    assert np.asarray(image.convert('RGB')).mean(axis=(0, 1)) == pytest.approx(color, abs=0.01)


def test_fingerprints_of_the_set_are_the_published_ones(pair):
    assert [images.fingerprint() for images in pair] == ['5720c4b7867fec4d', '7da10e40b907dcf2']


def test_image_depends_on_class_and_index_alone():
    first = sample_set.draw('rings', 5).tobytes()
    sample_set.draw('dots', 6)
    assert sample_set.draw('rings', 5).tobytes() == first
    assert sample_set.draw('rings', 6).tobytes() != first


def test_processes_that_start_together_draw_the_set_once(tmp_path):
    processes = [start(tmp_path, COUNT) for _ in range(3)]
    drawn = ' '.join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(int, drawn.split())) == list(range(50))
    assert len(files(tmp_path)) == 50


def test_every_generation_gives_the_same_bytes(tmp_path):
    caches = tmp_path / 'a', tmp_path / 'b'
    for process in [start(cache) for cache in caches]:
        assert process.wait(timeout=120) == 0
    assert files(caches[0]) == files(caches[1])


def test_killed_generation_leaves_no_set_and_the_next_one_completes(tmp_path, small):
    killed = start(tmp_path, """
import os, signal
def die(name, index):
    if index == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(name, index)
sample_set.draw = die
""")
    assert killed.wait(timeout=120) == -9
    assert files(tmp_path) and not list(tmp_path.glob(f'*/sample-set-{sample_set.VERSION}/*'))
    train, val = sample_set.ensure_sample_set(str(tmp_path))
    assert len(files(pathlib.Path(train))) == 30 and len(files(pathlib.Path(val))) == 20
    assert len(files(tmp_path)) == 50


def test_set_that_lost_files_is_drawn_again(tmp_path, small):
    train, _ = sample_set.ensure_sample_set(str(tmp_path))
    before = files(tmp_path)
    os.remove(os.path.join(train, 'dots', 'dots_001.JPEG'))
    shutil.rmtree(os.path.join(train, 'rays'))
    sample_set.ensure_sample_set(str(tmp_path))
    assert files(tmp_path) == before


def test_set_that_is_there_is_not_written_again(tmp_path, small, monkeypatch):
    directories = sample_set.ensure_sample_set(str(tmp_path))
    (pathlib.Path(directories[0]) / 'dots' / '.DS_Store').touch()
    monkeypatch.setattr(os, 'makedirs', None)
    monkeypatch.setattr(sample_set, 'draw', None)
    assert sample_set.ensure_sample_set(str(tmp_path)) == directories


def test_cache_follows_the_environment(tmp_path, small, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert sample_set.ensure_sample_set()[0].startswith(
        str(tmp_path / 'xdg' / 'extremely-large-minibatch-sgd' / 'sample-set-'))
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert sample_set.ensure_sample_set()[1].startswith(str(tmp_path / 'home' / '.cache'))


def test_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError) as caught:
        sample_set.ensure_sample_set(str(tmp_path / 'file'))
    assert str(tmp_path / 'file') in str(caught.value) and 'XDG_CACHE_HOME' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_full_disk_is_reported(tmp_path, small, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(UserError, match='No space left on device'):
        sample_set.ensure_sample_set(str(tmp_path))
