"""The scaling benchmark on a stand-in for the launch script, and its arithmetic on hand-made tables."""

import csv
import json

from lib.errors import UserError

import numpy as np
import pytest

from jobs import cost_model, scaling

# Leaves what a training leaves: 0.1 s of computation, 0.01 s of all-reduce per process; slow at first.
STAND_IN = '''
import csv, json, os, sys
words = sys.argv[1:]
with open(os.environ['CALLS'], 'a') as file:
    file.write(json.dumps(words) + '\\n')
if os.environ.get('STATUS'):
    print('it broke')
    sys.exit(int(os.environ['STATUS']))
n, out = int(words[0]), words[words.index('--out') + 1]
os.makedirs(out, exist_ok=True)
images, batch = int(words[words.index('--n-train') + 1]), int(words[words.index('-B') + 1])
with open(f'{out}/timing.csv', 'w') as file:
    writer = csv.writer(file)
    writer.writerow(['iteration', 'iteration_time', 'allreduce_time', 'data_time'])
    for t in range(1, images // (n * batch) + 1):
        writer.writerow([t, 9.0 if t <= 7 else 0.1 + 0.01 * n, 0.01 * n, 0.0])
with open(f'{out}/plan.json', 'w') as file:
    json.dump({'wire_bytes_per_iteration': 1000}, file)
'''


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """A launch script without a training; returns its calls so far, as lists of words."""
    (tmp_path / 'stand_in.py').write_text(STAND_IN)
    (tmp_path / 'launch.sh').write_text(f'exec "$PYTHON" {tmp_path}/stand_in.py "$@"\n')
    monkeypatch.setattr(scaling, 'LAUNCH', tmp_path / 'launch.sh')
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    monkeypatch.delenv('STATUS', raising=False)

    def calls():
        path = tmp_path / 'calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return calls


def words(tmp_path, *own, training=('--communicator', 'naive', '-B', '4')):
    return ['--out', str(tmp_path / 'out'), '--warm-up', '7', *own, '--', *training]


def test_measures_every_count_and_leaves_the_warm_up_out(launch, tmp_path, capsys):
    assert scaling.main(words(tmp_path, '--processes', '1,2,4', '--node-size', '2')) == 0
    with open(tmp_path / 'out' / 'scaling.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['processes'] for row in rows] == ['1', '2', '4']
    assert [float(row['iteration_time']) for row in rows] == [0.11, 0.12, 0.14]
    assert [float(row['iteration_time_q3']) for row in rows] == [0.11, 0.12, 0.14]  # no warm-up among them
    assert [float(row['allreduce_time']) for row in rows] == [0.01, 0.02, 0.04]
    assert {row['iterations'] for row in rows} == {'100'}
    out = capsys.readouterr().out
    assert '79%' in out and '86%' in out  # 0.11 / 0.14 against one process, 0.12 / 0.14 against a node
    assert (tmp_path / 'out' / 'scaling.png').stat().st_size > 1000


def test_runs_are_synthetic_and_just_long_enough(launch, tmp_path):
    scaling.main(words(tmp_path, '--processes', '2', training=('--communicator', 'naive', '-B', '4',
                                                               '--virtual-workers', '3')))
    (call,) = launch()
    assert call[0] == '2' and '--synthetic' in call
    assert call[call.index('--n-train') + 1] == str(107 * 2 * 3 * 4)
    assert call[call.index('--epoch') + 1] == '1'


def test_second_run_measures_only_what_is_missing(launch, tmp_path, capsys):
    scaling.main(words(tmp_path, '--processes', '1'))
    scaling.main(words(tmp_path, '--processes', '1,2'))
    assert [call[0] for call in launch()] == ['1', '2']
    assert '1 processes: measured already' in capsys.readouterr().out
    scaling.main(words(tmp_path, '--processes', '1', '--fresh'))
    assert [call[0] for call in launch()] == ['1', '2', '1']


def test_rows_measured_with_other_options_are_not_mixed_in(launch, tmp_path, capsys):
    scaling.main(words(tmp_path, '--processes', '1'))
    other = words(tmp_path, '--processes', '2', training=('--communicator', 'naive', '-B', '8'))
    assert scaling.main(other) == 2
    err = capsys.readouterr().err
    assert '--fresh' in err and '-B 8' in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('status', [1, 75])
def test_failed_training_ends_the_benchmark_with_its_status(status, launch, tmp_path, monkeypatch, capsys):
    scaling.main(words(tmp_path, '--processes', '1'))
    monkeypatch.setenv('STATUS', str(status))
    assert scaling.main(words(tmp_path, '--processes', '1,2,4')) == status
    assert 'it broke' in capsys.readouterr().err
    assert len(launch()) == 2
    with open(tmp_path / 'out' / 'scaling.csv', newline='') as file:
        assert [row['processes'] for row in csv.DictReader(file)] == ['1']  # kept for the next time


def test_more_processes_than_cores_are_marked(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling.os, 'sched_getaffinity', lambda pid: {0, 1})
    scaling.main(words(tmp_path, '--processes', '2,3'))
    with open(tmp_path / 'out' / 'scaling.csv', newline='') as file:
        assert [row['oversubscribed'] for row in csv.DictReader(file)] == ['no', 'yes']


def test_the_cost_model_reads_the_table(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling.os, 'sched_getaffinity', lambda pid: {0, 1, 2})
    scaling.main(words(tmp_path, '--processes', '1,2,3'))
    rows = cost_model.read_measurements(tmp_path / 'out' / 'scaling.csv')
    machine = cost_model.fit(rows, node_size=2)
    assert machine.compute == pytest.approx(0.11)
    assert cost_model.allreduce_seconds(2, 1000, machine) == pytest.approx(0.01)


def test_median_and_quartiles():
    times = np.stack([np.arange(1.0, 102.0), np.zeros(101), np.zeros(101)], axis=1)
    summary = scaling.summarize(times)
    assert [summary[f'iteration_time{end}'] for end in ('_q1', '', '_q3')] == [26, 51, 76]


def test_empty_timing_table_is_refused(tmp_path):
    path = tmp_path / 'timing.csv'
    path.write_text('iteration,iteration_time,allreduce_time,data_time\n1,0.1,0,0\n')
    with pytest.raises(UserError, match='warm-up'):
        scaling.read_times(path, 10)


@pytest.mark.parametrize('mistake, part', [
    (['--processes', '0'], "'0'"), (['--iterations', '99'], '--iterations is 99'),
    (['--', '--nonsense'], 'nonsense')])
def test_mistakes_are_one_line_and_status_2(mistake, part, capsys):
    with pytest.raises(SystemExit) as stop:
        scaling.main(mistake)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and part in err and len(err.splitlines()) == 1
