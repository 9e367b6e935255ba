import types

from lib.run import summary

PLAN = types.SimpleNamespace(iterations=30, total_batch=64)


def row(iteration, accuracy, **times):
    return {'iteration': iteration, 'elapsed_time': 9.5, 'validation/main/accuracy': accuracy, **times}


def test_shares_are_weighted_by_the_rows_iterations():
    log = [row(10, 0.5, iteration_time=1.0, allreduce_time=0.5, data_time=0.0),
           row(30, 0.4, iteration_time=2.0, allreduce_time=0.0, data_time=0.5)]
    told = summary.describe(PLAN, log)
    # 10 x 1 s + 20 x 2 s = 50 s; 5 s of all-reduce, 10 s of data.
    assert '70% computation, 10% communication, 20% waiting for data' in told
    assert f'{30 * 64 / 50:.0f} images/s' in told


def test_last_and_best_accuracy_are_told():
    times = dict(iteration_time=1.0, allreduce_time=0.0, data_time=0.0)
    told = summary.describe(PLAN, [row(10, 0.5, **times), row(30, 0.4, **times)])
    assert '0.4000 at the end, 0.5000 at best (validation 1 of 2)' in told


def test_run_without_validation_images_has_no_accuracy():
    assert 'accuracy' not in summary.describe(PLAN, [{'iteration': 30, 'elapsed_time': 1.0}])
