import collections
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from lib import random_streams, sharding
from lib.data import decoder_pool, shared_memory
from lib.data.batches import TrainingBatches, validation_batches
from lib.data.datasets import ImageList
from lib.data.decoder_pool import ImagePool
from lib.data.decoding import load_training, load_validation
from lib.data.synthetic import SyntheticBatches
from lib.errors import BadImage, UserError
from lib.sharding import Share, permutation, worker_batch

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[3]
N = 23
INSIZE = 16
SEED = 5
POOLS = {'serial': (0, 'process'), '1 process': (1, 'process'), '4 processes': (4, 'process'),
         '3 threads': (3, 'thread')}


def make_images(directory, n, bad=()):
    """``n`` JPEG files, of which those in ``bad`` are none, as an image list with label 100 + number."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = directory / f'{i}.jpg'
        if i in bad:
            path.write_bytes(b'no image')
        else:
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40 + i, 30), Image.BICUBIC).save(path)
    return ImageList(str(directory), [f'{i}.jpg'.encode() for i in range(n)], np.arange(100, 100 + n))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp('images'), N)


@pytest.fixture(scope='module', params=POOLS)
def pool(request):
    with ImagePool(*POOLS[request.param]) as pool:
        yield pool


@pytest.fixture(scope='module')
def two_processes():
    with ImagePool(2) as pool:
        yield pool


@pytest.fixture
def serial():
    return ImagePool(0)


def training(pool, images, batch=4, n_workers=4, first=0, local=4, start=0, stop=5, **options):
    return TrainingBatches(pool, images, INSIZE, Share(SEED, batch, n_workers, first, local, start, stop),
                           **options)


def collect(batches):
    """Copies of all batches, pixels and labels."""
    return [(pixels.copy(), labels.copy()) for pixels, labels in batches]


def assert_same(a, b):
    assert len(a) == len(b)
    for (pixels_a, labels_a), (pixels_b, labels_b) in zip(a, b):
        assert np.array_equal(pixels_a, pixels_b)
        assert np.array_equal(labels_a, labels_b)


def processes(pool):
    return pool._decoder._processes


# ---- training batches ----

def test_every_pool_gives_the_images_of_the_order_with_their_augmentation(pool, images):
    got = collect(training(pool, images))
    assert len(got) == 5 * 4
    for number, (pixels, labels) in enumerate(got):
        indices, epochs = worker_batch(number // 4, number % 4, 4, 4, N, SEED)
        expected = [load_training(images.path(i), INSIZE, SEED, int(epoch), int(i))
                    for i, epoch in zip(indices, epochs)]
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)
        assert labels.dtype == np.int32 and np.array_equal(labels, 100 + indices)


def test_batches_cross_the_boundaries_of_epochs(images):
    seen = {int(epoch) for t in range(5) for w in range(4) for epoch in worker_batch(t, w, 4, 4, N, SEED)[1]}
    assert seen == {0, 1, 2, 3}  # what the test above has covered


def test_one_process_with_four_workers_gives_the_batches_of_four_processes(serial, images):
    together = collect(training(serial, images))
    apart = [collect(training(serial, images, first=worker, local=1)) for worker in range(4)]
    assert_same(together, [apart[worker][t] for t in range(5) for worker in range(4)])


def test_a_later_start_gives_the_rest_of_the_same_batches(two_processes, images):
    whole = collect(training(two_processes, images))
    assert_same(whole[3 * 4:], collect(training(two_processes, images, start=3)))


# ---- the next epoch's order ----

class Drawings:
    """Who draws which epoch's order: thread by epoch; ``finished[epoch]`` is set once it is there."""

    def __init__(self, monkeypatch, broken=None):
        self.threads = {}
        self.finished = collections.defaultdict(threading.Event)
        permutation.cache_clear()

        def draw(values, kind):
            epoch = of_thread.epoch
            self.threads[epoch] = threading.current_thread()
            if epoch == broken:
                raise MemoryError(f'no room for epoch {epoch}')
            order = argsort(values, kind=kind)
            self.finished[epoch].set()
            return order

        def stream(seed, purpose, *numbers):
            of_thread.epoch = numbers[-1]
            return make(seed, purpose, *numbers)

        argsort, make, of_thread = np.argsort, random_streams.stream, threading.local()
        monkeypatch.setattr(sharding.np, 'argsort', draw)
        monkeypatch.setattr(sharding.random_streams, 'stream', stream)

    def in_main_thread(self):
        return [epoch for epoch, thread in self.threads.items() if thread is threading.main_thread()]


@pytest.mark.parametrize('start, first_epoch', [(0, 0), (7, 2)])
def test_next_epoch_s_order_is_there_before_its_first_batch_is_asked_for(monkeypatch, serial, images, start,
                                                                         first_epoch):
    drawings = Drawings(monkeypatch)
    batches = training(serial, images, n_workers=2, local=2, start=start, stop=12)  # 8 of 23 at a time
    for number in range(2 * start, 2 * 12):
        next(batches)
        epoch = (4 * number + 3) // N
        if epoch < 4:
            assert drawings.finished[epoch + 1].wait(20), f'epoch {epoch + 1} is not drawn in {epoch}'
    assert drawings.in_main_thread() == [first_epoch]
    assert sorted(drawings.threads) == list(range(first_epoch, 5))  # and none that is not reached


def test_run_that_ends_with_an_epoch_draws_none_beyond(monkeypatch, serial, images):
    drawings = Drawings(monkeypatch)
    collect(training(serial, images, batch=N, n_workers=1, local=1, stop=2))
    for thread in threading.enumerate():
        if thread.name.startswith('order of the next epoch'):
            thread.join()
    assert sorted(drawings.threads) == [0, 1]


def test_batches_that_span_several_epochs_find_every_order(monkeypatch, serial, images):
    Drawings(monkeypatch)
    got = [labels.tolist() for _, labels in training(serial, images, batch=60, n_workers=2, local=1, stop=4)]
    assert got == [(worker_batch(t, 0, 2, 60, N, SEED)[0] + 100).tolist() for t in range(4)]


def test_fault_while_the_next_order_is_drawn_is_raised_where_it_is_needed(monkeypatch, serial, images):
    Drawings(monkeypatch, broken=1)
    batches = training(serial, images, n_workers=1, local=1, stop=12)  # 4 of 23 at a time
    for _ in range(5):
        next(batches)
    with pytest.raises(MemoryError, match='no room for epoch 1'):
        next(batches)


@pytest.mark.parametrize('batch, local', [(1, 1), (1, 3), (32, 1), (33, 2)])
def test_small_and_large_batches_come_out_whole(two_processes, images, batch, local):
    got = collect(training(two_processes, images, batch=batch, n_workers=3, local=local, stop=4))
    assert [len(labels) for _, labels in got] == [batch] * 4 * local
    expected = [worker_batch(t, w, 3, batch, N, SEED)[0] + 100 for t in range(4) for w in range(local)]
    assert np.array_equal([labels for _, labels in got], expected)


def test_more_tasks_than_the_socket_holds_are_all_done(two_processes, images):
    got = collect(training(two_processes, images, batch=1000, n_workers=1, local=1, stop=2))
    assert np.array_equal([labels for _, labels in got],
                          [worker_batch(t, 0, 1, 1000, N, SEED)[0] + 100 for t in range(2)])


def test_batch_stays_as_it_is_until_the_next_is_asked_for(two_processes, images):
    batches = training(two_processes, images, stop=12)
    for pixels, _ in batches:
        before = pixels.copy()
        # Whatever is under way is finished by now, and would have overwritten it.
        list(validation_batches(two_processes, images, INSIZE, 0, 8, 4))
        assert np.array_equal(pixels, before)


def test_jitter_reaches_the_decoders(two_processes, images):
    (pixels, _), *_ = training(two_processes, images, n_workers=1, local=1, stop=1, jitter=True)
    index = int(worker_batch(0, 0, 1, 4, N, SEED)[0][0])
    assert np.array_equal(pixels[0], load_training(images.path(index), INSIZE, SEED, 0, index, jitter=True))


def test_reading_ahead_happens_before_the_first_batch_is_asked_for(images):
    with ImagePool(1) as pool:
        batches = training(pool, images)
        pool.receive()  # a result has come in
        next(batches)


# ---- validation batches ----

def test_validation_covers_its_share_in_order_with_a_short_last_batch(pool, images):
    got = collect(validation_batches(pool, images, INSIZE, 3, 20, 5))
    assert [len(labels) for _, labels in got] == [5, 5, 5, 2]
    assert np.array_equal(np.concatenate([labels for _, labels in got]), 100 + np.arange(3, 20))
    expected = [load_validation(images.path(i), INSIZE) for i in range(3, 20)]
    assert np.array_equal(np.concatenate([pixels for pixels, _ in got]), expected)


def test_validation_runs_while_training_batches_are_under_way(pool, images):
    plain = collect(training(pool, images))
    mixed, batches = [], training(pool, images)
    for pixels, labels in batches:
        mixed.append((pixels.copy(), labels))
        assert sum(len(labels) for _, labels in validation_batches(pool, images, INSIZE, 0, N, 4)) == N
    assert_same(mixed, plain)


def test_abandoned_validation_leaves_the_pool_usable(pool, images):
    batches = training(pool, images)
    first = next(batches)[0].copy()
    for _ in validation_batches(pool, images, INSIZE, 0, N, 2):
        break
    rest = collect(batches)
    assert_same([(first, None)], [(collect(training(pool, images, stop=1))[0][0], None)])
    assert len(rest) == 5 * 4 - 1


def test_empty_share_gives_no_batch(pool, images):
    assert list(validation_batches(pool, images, INSIZE, 7, 7, 4)) == []


def test_memory_is_used_again_by_the_next_validation(two_processes, images):
    def validate():
        list(validation_batches(two_processes, images, INSIZE, 0, N, 5))
        return two_processes._decoder._memory._size

    assert validate() == validate() == validate()


# ---- bad images ----

def replacement(index, epoch, bad):
    """The rule, spelled out: on to the next position of the epoch's order until an image is good."""
    order = permutation(epoch, N, SEED).tolist()
    place = order.index(index)
    while order[place] in bad:
        place = (place + 1) % N
    return order[place]


@pytest.mark.parametrize('bad', [{4}, {0, 1, 2, 3, 9, 10, 11}, set(range(1, N))],
                         ids=['one', 'many', 'but one'])
def test_skipped_images_are_replaced_by_the_next_of_their_epoch(pool, tmp_path, bad):
    images = make_images(tmp_path, N, bad)
    batches = training(pool, images, on_bad_image='skip')
    got = collect(batches)
    skipped = []
    for number, (pixels, labels) in enumerate(got):
        for place, (i, epoch) in enumerate(zip(*worker_batch(number // 4, number % 4, 4, 4, N, SEED))):
            if i in bad:
                skipped.append((images.path(i), epoch))
                i = replacement(i, epoch, bad)
            assert labels[place] == 100 + i
            expected = load_training(images.path(i), INSIZE, SEED, int(epoch), int(i))
            assert np.array_equal(pixels[place], expected)
    assert [(path, epoch) for path, _, epoch in batches.skipped] == skipped
    assert all(reason.startswith('none of the formats') for _, reason, _ in batches.skipped)


def test_an_epoch_around_a_bad_image_moves_no_other(serial, tmp_path):
    images = make_images(tmp_path, N, bad={4})
    labels = [label for _, labels in training(serial, images, batch=N, n_workers=1, local=1, stop=1,
                                              on_bad_image='skip') for label in labels]
    order = permutation(0, N, SEED)
    assert [a == b for a, b in zip(labels, 100 + order)].count(False) == 1
    following = order[(order.tolist().index(4) + 1) % N]
    assert labels.count(100 + following) == 2 and 104 not in labels


def test_replacements_go_before_what_is_read_ahead(serial, tmp_path, monkeypatch):
    submitted = []
    submit = serial.submit
    monkeypatch.setattr(serial, 'submit', lambda *task: (submitted.append(task[-1]), submit(*task)))
    images = make_images(tmp_path, N, bad={permutation(0, N, SEED)[1]})
    next(training(serial, images, n_workers=1, local=1, on_bad_image='skip'))
    assert submitted == [False, True]


def test_skipping_gives_up_when_no_image_is_good(pool, tmp_path):
    images = make_images(tmp_path, 5, bad=range(5))
    batches = TrainingBatches(pool, images, INSIZE, Share(SEED, 3, 1, 0, 1, 0, 2), on_bad_image='skip')
    with pytest.raises(BadImage, match='nor can any of 5'):
        next(batches)


def test_bad_image_ends_the_training_when_its_batch_is_due(pool, tmp_path):
    order = permutation(0, N, SEED).tolist()
    bad = order[9], order[10]
    images = make_images(tmp_path, N, bad)
    batches = training(pool, images, n_workers=1, local=1)
    assert np.array_equal(next(batches)[1], 100 + np.array(order[:4]))
    assert np.array_equal(next(batches)[1], 100 + np.array(order[4:8]))
    with pytest.raises(BadImage) as caught:
        next(batches)
    assert caught.value.path == images.path(bad[0])
    assert np.array_equal(next(batches)[1], 100 + np.array(order[12:16]))


def test_validation_raises_for_a_bad_image(pool, tmp_path):
    images = make_images(tmp_path, N, bad={6, 7})
    batches = validation_batches(pool, images, INSIZE, 0, N, 4)
    next(batches)
    with pytest.raises(BadImage) as caught:
        next(batches)
    assert caught.value.path == images.path(6)


def test_validation_leaves_bad_images_out_and_counts_them(pool, tmp_path):
    images = make_images(tmp_path, N, bad={0, 6, 8, 9, 10, 11})
    skipped = []
    got = collect(validation_batches(pool, images, INSIZE, 0, N, 4, on_bad_image='skip', skipped=skipped))
    good = [i for i in range(N) if i not in (0, 6, 8, 9, 10, 11)]
    assert np.array_equal(np.concatenate([labels for _, labels in got]), 100 + np.array(good))
    assert [len(labels) for _, labels in got] == [3, 3, 4, 4, 3]  # the third batch of four is gone
    assert np.array_equal(np.concatenate([pixels for pixels, _ in got]),
                          [load_validation(images.path(i), INSIZE) for i in good])
    assert [path for path, _ in skipped] == [images.path(i) for i in (0, 6, 8, 9, 10, 11)]


# ---- processes ----

def test_decoders_live_through_signals_to_the_whole_group(images):
    with ImagePool(2) as pool:
        for process in processes(pool):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                process.send_signal(number)
        assert len(collect(training(pool, images))) == 20
        assert all(process.poll() is None for process in processes(pool))


def test_signals_reach_this_process_as_before():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with ImagePool(1):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize('kind', ['process', 'thread'])
def test_closed_batches_give_their_memory_back_after_the_last_image(images, monkeypatch, kind):
    with ImagePool(1, kind) as pool:
        under_way, release = [], pool.release
        monkeypatch.setattr(
            pool, 'release', lambda ring: (under_way.append(len(pool._receivers)), release(ring)))
        batches = training(pool, images)
        assert pool._receivers
        batches.close()
        batches.close()
    assert under_way == [0]


def test_decoder_that_hangs_up_ends_the_training(images):
    with ImagePool(1) as pool:
        batches = training(pool, images, stop=10 ** 6)
        next(batches)
        for key in pool._decoder._selector.get_map().values():
            key.fileobj.shutdown(socket.SHUT_RD)
        with pytest.raises(RuntimeError, match='decoder process 0'):
            collect(batches)


def test_killed_decoder_ends_the_training_with_its_name(images):
    with ImagePool(2) as pool:
        batches = training(pool, images, stop=10 ** 6)
        next(batches)
        victim = processes(pool)[1]
        victim.kill()
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=rf'process 1 \(pid {victim.pid}\) was killed by SIGKILL'):
            collect(batches)
        assert time.monotonic() - start < 5
        with pytest.raises(RuntimeError, match='decoder process 1'):
            next(validation_batches(pool, images, INSIZE, 0, N, 4))


def test_fault_that_is_not_the_images_is_reported_with_its_traceback(images):
    with ImagePool(1) as pool:
        ring = pool.allocate((1, 1, INSIZE, INSIZE, 3))
        pool.submit(pytest.fail, ring, 0, ('no seed', False), [(0, images.path(0), 0, 0)], urgent=False)
        with pytest.raises(RuntimeError, match='(?s)Traceback.*ValueError'):
            pool.receive()


PARENT = '''
import os, sys
sys.path.insert(0, {root!r})
import numpy as np
from lib.data.datasets import ImageList
from lib.data.batches import TrainingBatches
from lib.data.decoder_pool import ImagePool
from lib.sharding import Share
pool = ImagePool(3)
images = ImageList({data!r}, [b'%d.jpg' % i for i in range({n})], np.arange({n}))
batches = TrainingBatches(pool, images, 16, Share(5, 4, 1, 0, 1, 0, 10 ** 6))
pixels, labels = next(batches)
assert (labels == {labels!r}).all()
print('ready', flush=True)
sys.stdin.read()
'''


def start_parent(images, cwd, data):
    labels = worker_batch(0, 0, 1, 4, N, SEED)[0].tolist()
    program = PARENT.format(root=str(ROOT), data=data, n=N, labels=labels)
    # The decoder processes hold the standard error stream too: it ends when all of them have.
    return subprocess.Popen([sys.executable, '-c', program], cwd=cwd, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_decoders_end_with_a_killed_parent(images):
    parent = start_parent(images, ROOT, images.root)
    assert parent.stdout.readline() == 'ready\n'
    parent.kill()
    _, errors = parent.communicate(timeout=20)
    assert errors == ''


def test_a_stopped_decoder_ends_with_a_killed_parent(images):
    parent = start_parent(images, ROOT, images.root)
    assert parent.stdout.readline() == 'ready\n'
    children = pathlib.Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGSTOP)
    parent.kill()
    assert parent.communicate(timeout=20)[1] == '' and children


def test_decoders_that_are_stopped_can_be_ended_for_the_watchdog(monkeypatch):
    with ImagePool(2) as pool:
        for process in processes(pool):
            process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(decoder_pool, '_started', {pool._decoder})  # not those of other tests
        decoder_pool.kill_decoders()
        assert [process.wait(20) for process in processes(pool)] == [-signal.SIGKILL] * 2


def test_decoders_find_the_package_from_a_directory_with_another_of_that_name(images, tmp_path):
    for name in ('lib', 'numpy', 'PIL'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text('raise ImportError("the wrong package")\n')
    program = f'import sys; sys.path.pop(0)\n{PARENT}'.format(
        root=str(ROOT), data=os.path.relpath(images.root, tmp_path), n=N,
        labels=worker_batch(0, 0, 1, 4, N, SEED)[0].tolist())
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ('ready\n', '', 0)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_decoders_do_not_look_like_ranks(images, monkeypatch):
    for name in ('OMPI_COMM_WORLD_RANK', 'PMIX_RANK', 'PMI_RANK', 'SLURM_PROCID'):
        monkeypatch.setenv(name, '1')
    monkeypatch.setenv('OPENBLAS_NUM_THREADS', '7')
    with ImagePool(1) as pool:
        next(training(pool, images))  # it runs, and not only starts to
        environment = pathlib.Path(f'/proc/{processes(pool)[0].pid}/environ').read_bytes().split(b'\0')
    assert not [entry for entry in environment if entry.startswith((b'OMPI_', b'PMI', b'SLURM_'))]
    assert b'OPENBLAS_NUM_THREADS=1' in environment and b'OMP_NUM_THREADS=1' in environment


def test_decoders_import_neither_chainer_nor_mpi():
    program = ('import sys, lib.data.decoder_process, lib.data.decoding\n'
               'print([name for name in ("chainer", "chainermn", "mpi4py", "scipy") if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == '[]\n', done.stderr


def test_close_ends_everything_while_batches_are_under_way(images):
    pool = ImagePool(2)
    batches = training(pool, images, stop=10 ** 6)
    pixels, _ = next(batches)
    kept = pixels.copy()
    pool.close()
    pool.close()
    assert np.array_equal(pixels, kept)
    with pytest.raises(RuntimeError, match='closed'):
        next(batches)
    batches.close()


@pytest.mark.parametrize('jobs, kind', [(0, 'process'), (2, 'thread')])
def test_closed_pool_of_this_process_says_so_too(images, jobs, kind):
    pool = ImagePool(jobs, kind)
    batches = training(pool, images)
    next(batches)
    pool.close()
    with pytest.raises(RuntimeError, match='closed'):
        collect(batches)
    batches.close()


def test_closed_pool_has_no_processes_left(images):
    pool = ImagePool(2)
    started = processes(pool)
    next(training(pool, images))
    pool.close()
    assert None not in [process.poll() for process in started]


# ---- memory ----

def test_shortage_of_memory_is_reported_with_the_remedy(two_processes, images, monkeypatch):
    def refuse(descriptor, offset, n_bytes):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', refuse)
    with pytest.raises(UserError, match=r'\d+ bytes .*No space left on device.*smaller --val-batchsize'):
        training(two_processes, images, batch=999)


def test_memory_that_the_machine_does_not_have_is_not_touched(two_processes, images, monkeypatch):
    monkeypatch.setattr(shared_memory, '_available_memory', lambda: 1e6)
    with pytest.raises(UserError, match='more than is free'):
        training(two_processes, images, batch=10000)
    assert len(collect(training(two_processes, images))) == 20


def test_system_without_memfd_uses_a_file(images, monkeypatch):
    monkeypatch.delattr(os, 'memfd_create', raising=False)
    with ImagePool(1) as pool:
        got = collect(training(pool, images, stop=1))
    assert_same(got, collect(training(ImagePool(0), images, stop=1)))


# ---- synthetic batches ----

def test_synthetic_batches_have_the_shape_of_training_batches(serial, images):
    synthetic = SyntheticBatches(7, INSIZE, Share(SEED, 4, 4, 1, 2, 3, 6))
    real = collect(training(serial, images, first=1, local=2, start=3, stop=6))
    got = collect(synthetic)
    assert [(p.shape, p.dtype, y.shape, y.dtype) for p, y in got] == \
        [(p.shape, p.dtype, y.shape, y.dtype) for p, y in real]
    assert set(np.concatenate([labels for _, labels in got])) <= set(range(7))
    assert synthetic.skipped == []


def test_synthetic_batches_belong_to_workers_not_to_processes():
    together = collect(SyntheticBatches(7, INSIZE, Share(SEED, 4, 6, 0, 6, 0, 2)))
    apart = [collect(SyntheticBatches(7, INSIZE, Share(SEED, 4, 6, worker, 1, 0, 2))) for worker in range(6)]
    assert_same(together, [apart[worker][t] for t in range(2) for worker in range(6)])
    assert not np.array_equal(together[0][0], together[1][0])


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity') or os.cpu_count() == 1, reason='needs several cores')
def test_decoders_use_all_cores_though_their_rank_is_bound_to_one():
    bound = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(bound)})
        with ImagePool(1) as pool:
            assert os.sched_getaffinity(pool._decoder._processes[0].pid) >= bound
    finally:
        os.sched_setaffinity(0, bound)
