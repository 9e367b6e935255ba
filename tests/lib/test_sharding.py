import subprocess
import sys

from lib import sharding

import numpy as np
import pytest

JOBS = [(1, 1, 7), (2, 3, 17), (3, 4, 10), (4, 8, 33), (5, 2, 100), (2, 8, 5), (7, 3, 64), (1, 32, 31)]


def stream(n, b, n_examples, seed, n_images):
    """(epoch, index) of the first ``n_images`` images, read worker by worker."""
    seen = []
    iteration = 0
    while len(seen) < n_images:
        for worker in range(n):
            indices, epochs = sharding.worker_batch(iteration, worker, n, b, n_examples, seed)
            seen += zip(epochs.tolist(), indices.tolist())
        iteration += 1
    return seen[:n_images]


@pytest.mark.parametrize('n, b, n_examples', JOBS)
def test_every_image_is_seen_exactly_once_in_each_of_five_epochs(n, b, n_examples):
    seen = stream(n, b, n_examples, 0, 5 * n_examples)
    for epoch in range(5):
        assert sorted(i for e, i in seen if e == epoch) == list(range(n_examples))


@pytest.mark.parametrize('n, b, n_examples', JOBS)
def test_epochs_follow_each_other_without_mixing(n, b, n_examples):
    epochs = [e for e, _ in stream(n, b, n_examples, 0, 5 * n_examples)]
    assert epochs == sorted(epochs)


def test_stream_does_not_depend_on_how_it_is_divided():
    assert stream(6, 4, 50, 3, 200) == stream(1, 1, 50, 3, 200) == stream(4, 6, 50, 3, 200)


def test_order_that_several_share_can_not_be_written_to():
    assert not sharding.permutation(0, 20, 0).flags.writeable


def test_order_differs_between_epochs():
    orders = {tuple(sharding.permutation(epoch, 20, 0)) for epoch in range(10)}
    assert len(orders) == 10


def test_order_differs_between_seeds():
    orders = {tuple(sharding.permutation(0, 20, seed)) for seed in range(10)}
    assert len(orders) == 10


def test_largest_seed_is_accepted():
    assert sorted(sharding.permutation(0, 5, 2**64 - 1)) == [0, 1, 2, 3, 4]


def test_first_places_are_uniform_over_the_images():
    counts = np.bincount([sharding.permutation(epoch, 10, 1)[0] for epoch in range(2000)], minlength=10)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 33.7  # 9 degrees of freedom, p = 1e-4


def test_two_processes_that_know_nothing_of_each_other_agree():
    program = ('from lib.sharding import worker_batch\n'
               'print([a.tolist() for t in range(3) for a in worker_batch(t, 2, 4, 8, 29, 5)])')
    answers = {subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                              check=True).stdout for _ in range(2)}
    here = [a.tolist() for t in range(3) for a in sharding.worker_batch(t, 2, 4, 8, 29, 5)]
    assert answers == {f'{here}\n'}


def test_order_is_the_published_one():
    # Fixed forever: a resumed run must find the order it was started with.
    assert sharding.permutation(0, 8, 0).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    first = [sharding.permutation(epoch, 1281167, 0)[:5].tolist() for epoch in range(2)]
    assert first == [[686429, 648367, 422016, 274007, 1076650], [1182311, 167202, 500940, 920390, 1118350]]


def test_a_worker_in_the_middle_of_the_papers_run_trains_on_the_published_images():
    indices, epochs = sharding.worker_batch(39, 1023, 1024, 32, 1281167, 0)
    assert indices[:4].tolist() == [223541, 647521, 111259, 894533] and set(epochs) == {1}


@pytest.mark.parametrize('arguments', [(0, 4, 4, 8, 10, 0), (0, -1, 4, 8, 10, 0), (-1, 0, 4, 8, 10, 0),
                                       (0, 0, 4, 0, 10, 0), (0, 0, 4, 8, 0, 0)])
def test_impossible_batch_is_refused(arguments):
    with pytest.raises(ValueError):
        sharding.worker_batch(*arguments)


@pytest.mark.parametrize('epochs, n_examples, total_batch, expected', [
    (90, 1281167, 32768, 3519), (1, 10, 10, 1), (1, 11, 10, 2), (2, 5, 10, 1), (0.1, 100, 10, 1),
    (0.3, 10, 1, 3), ('0.7', 10, 7, 1)])
def test_run_length_is_the_ceiling_of_its_images(epochs, n_examples, total_batch, expected):
    assert sharding.n_iterations(epochs, n_examples, total_batch) == expected


@pytest.mark.parametrize('n_examples, total_batch', [(10, 3), (10, 10), (10, 25), (7, 1)])
def test_epoch_ends_where_a_multiple_of_the_set_is_reached(n_examples, total_batch):
    for iteration in range(1, 50):
        window = range((iteration - 1) * total_batch + 1, iteration * total_batch + 1)
        expected = any(seen % n_examples == 0 for seen in window)
        assert sharding.ends_epoch(iteration, n_examples, total_batch) == expected


@pytest.mark.parametrize('n_examples', [0, 1, 5, 17, 1000])
@pytest.mark.parametrize('n_parts', [1, 2, 3, 8])
def test_blocks_cover_everything_once_and_evenly(n_examples, n_parts):
    blocks = [sharding.block(part, n_parts, n_examples) for part in range(n_parts)]
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(n_examples))
    sizes = [stop - start for start, stop in blocks]
    assert max(sizes) - min(sizes) <= 1


def test_blocks_of_one_process_join_up():
    n_processes, k, n_examples = 3, 4, 41
    for rank in range(n_processes):
        first = sharding.block(rank * k, n_processes * k, n_examples)[0]
        last = sharding.block(rank * k + k - 1, n_processes * k, n_examples)[1]
        assert (first, last) == sharding.block(rank, n_processes, n_examples)
