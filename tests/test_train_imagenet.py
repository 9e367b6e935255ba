"""The program from end to end, and what it says to mistakes."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

from lib import compiled
from lib.run import arguments

import chainer
import numpy as np
import pytest
from PIL import Image

import models
import train_imagenet

LOG_KEYS = {'epoch', 'iteration', 'elapsed_time', 'main/loss', 'main/accuracy', 'validation/main/loss',
            'validation/main/accuracy', 'validation/main/accuracy_top5', 'lr', 'alpha_sgd', 'alpha_rmsprop',
            'images_per_sec', 'iteration_time', 'allreduce_time', 'exchange_time', 'data_time'}
OUTPUT = {'log', 'plan.json', 'timing.csv', 'checkpoint', 'model.npz', 'loss.png', 'accuracy.png',
          'schedule.png', 'finished'}


ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def finished(tmp_path_factory, train_into):
    """Output directory of a finished run on two ranks, and what it printed."""
    out = tmp_path_factory.mktemp('finished') / 'out'
    return out, train_into(out, 2, '-B', '8', '-E', '2').stdout


def test_log_holds_every_key(finished):
    log = json.loads((finished[0] / 'log').read_text())
    assert [set(row) for row in log] == [LOG_KEYS, LOG_KEYS]


def test_run_leaves_what_the_manual_lists(finished):
    assert {path.name for path in finished[0].iterdir()} == OUTPUT


def test_timing_holds_every_iteration(finished):
    rows = np.loadtxt(finished[0] / 'timing.csv', delimiter=',', skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, 11))
    assert (rows[:, 1] > rows[:, 2] + rows[:, 4]).all()


def test_losses_of_the_iterations_have_the_job_s_logged_mean(finished):
    losses = np.loadtxt(finished[0] / 'timing.csv', delimiter=',', skiprows=1)[:, 5]
    log = json.loads((finished[0] / 'log').read_text())
    (middle, end), means = [row['iteration'] for row in log], [row['main/loss'] for row in log]
    assert [losses[:middle].mean(), losses[middle:end].mean()] == pytest.approx(means, rel=1e-4)


def test_functions_do_not_check_types_at_every_call(mpirun, tmp_path):
    program = ('import train_imagenet, chainer\ntrain_imagenet.main()\n'
               'print("types are checked:", chainer.config.type_check)')
    done = mpirun(1, '-c', program, '--synthetic', '--arch', 'resnet8', '--insize', '16', '--test', '-b', '8',
                  '--out', tmp_path / 'out')
    assert done.stdout.endswith('types are checked: False\n')


def test_weights_load_into_the_network_and_give_the_logged_accuracy(finished, small_data):
    model = models.ResNet8(3)
    chainer.serializers.load_npz(finished[0] / 'model.npz', model)
    correct = total = 0
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for label, name in enumerate(('ant', 'bee', 'cat')):
        for path in sorted((small_data[1] / name).iterdir()):
            # 20 x 18 pixels: short side to round(16 * 256 / 224) = 18, so unchanged; the center 16.
            pixels = np.asarray(Image.open(path))[1:17, 2:18] / 255
            x = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
            with chainer.using_config('train', False), chainer.no_backprop_mode():
                correct += int(model(x).array.argmax() == label)
            total += 1
    log = json.loads((finished[0] / 'log').read_text())
    assert log[-1]['validation/main/accuracy'] == pytest.approx(correct / total)


def test_plan_and_summary_are_printed(finished):
    out = finished[1]
    assert 'eta_base' in out and 'total batch' in out
    assert 'accuracy' in out and 'waiting for data' in out


def test_output_without_terminal_has_no_control_codes(finished):
    assert '\033' not in finished[1]


def test_second_run_into_the_same_directory_is_refused(train_into, finished):
    done = train_into(finished[0], 2, check=False)
    assert done.returncode == 2
    assert line_of_error(done).endswith('or choose another directory')


def test_resuming_a_finished_run_says_so_and_writes_lost_weights_again(train_into, finished):
    weights = (finished[0] / 'model.npz').read_bytes()
    (finished[0] / 'model.npz').unlink()
    done = train_into(finished[0], 2, '-B', '8', '-E', '2', '--resume', 'auto')
    assert 'finished already' in done.stdout
    assert (finished[0] / 'model.npz').read_bytes() == weights


def test_the_mark_of_the_end_holds_the_summary_and_comes_back_with_a_resume(train_into, finished):
    mark = finished[0] / 'finished'
    assert mark.read_text() in finished[1] and mark.read_text().startswith('accuracy')
    told = mark.read_bytes()
    mark.unlink()
    train_into(finished[0], 2, '-B', '8', '-E', '2', '--resume', 'auto')
    assert mark.read_bytes() == told


def test_a_run_that_did_not_finish_has_no_mark_not_even_an_earlier_one(train, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'finished').write_text('of an earlier run\n')
    # An overflow of float16 ends the training in its first iteration.
    done = train(2, '-B', '8', '-E', '1', '--force', '--loss-scale', '1e9', check=False)
    assert done.returncode == 1
    assert not (tmp_path / 'out' / 'finished').exists()


@pytest.mark.skipif(os.getuid() == 0 and shutil.which('setpriv') is None, reason='root may read everything')
@pytest.mark.parametrize('denied', ['checkpoint/iteration-00000010.npz', 'checkpoint'])
def test_checkpoints_without_permission_end_the_resume_and_stay(finished, small_data, tmp_path, denied):
    out = tmp_path / 'out'
    shutil.copytree(finished[0], out)
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    mode = (out / denied).stat().st_mode
    (out / denied).chmod(0)
    as_user = ['setpriv', '--bounding-set=-dac_override,-dac_read_search', '--inh-caps=-all']
    command = [sys.executable, 'train_imagenet.py', *small_data, '--arch', 'resnet8', '--insize', '16', '-j',
               '0', '-B', '8', '-E', '2', '--virtual-workers', '2', '-o', out, '--resume', 'auto']
    done = subprocess.run([*(as_user if os.getuid() == 0 else []), *command], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)
    (out / denied).chmod(mode)
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert f'{denied}: cannot be read now (Permission denied)' in line
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


def test_resuming_another_job_spells_out_the_differences(train_into, finished):
    done = train_into(finished[0], 1, '-B', '8', '-E', '2', '--seed', '5', '--resume', 'auto', check=False)
    assert done.returncode == 2
    assert 'seed' in line_of_error(done) and 'workers' in line_of_error(done)


def test_resuming_with_other_vectors_says_so(train_into, finished, tmp_path):
    with_vectors = {'EXTREME_SGD_VECTORS': 'none'}
    checkpoints = sorted((finished[0] / 'checkpoint').iterdir())
    assert json.loads((finished[0] / 'plan.json').read_text())['software']['vectors'] == compiled.vectors()
    done = train_into(tmp_path / 'out', 2, '-B', '8', '-E', '2', '--resume', checkpoints[0], env=with_vectors)
    assert ('from now on with none' in done.stdout) == (compiled.vectors() != 'none')


def test_vectors_that_the_machine_lacks_are_named_on_one_line(train):
    done = train(2, check=False, env={'EXTREME_SGD_VECTORS': 'wide'})
    assert done.returncode == 2
    assert 'EXTREME_SGD_VECTORS=wide' in line_of_error(done)


@pytest.mark.parametrize('source', ['.', 'model.npz', 'checkpoint/iteration-00000010.npz'])
def test_weights_start_another_run(train, finished, tmp_path, source):
    # Learning rates so small that the loss of the first epoch is that of the given weights.
    train(1, '-B', '25', '-E', '1', '--eta-scale', '1e-9', '--transition', 'none', '--initmodel',
          finished[0] / source)
    log = json.loads((tmp_path / 'out' / 'log').read_text())
    given = json.loads((finished[0] / 'log').read_text())
    assert log[-1]['main/loss'] < given[0]['main/loss']


def test_plan_and_weights_tell_what_the_network_is_of(finished):
    plan = json.loads((finished[0] / 'plan.json').read_text())
    with np.load(finished[0] / 'model.npz') as weights:
        told = json.loads(weights['description'].item())
    assert told == {'arch': 'resnet8', 'insize': 16, 'dtype': 'float32', 'n_class': 3,
                    'classes': ['ant', 'bee', 'cat'], 'image_mean': [0.485, 0.456, 0.406],
                    'image_std': [0.229, 0.224, 0.225], 'val_batchsize': 250}
    assert {name: plan[name] for name in told} == told


def test_a_network_for_other_classes_starts_from_all_but_the_classifier(train, finished, small_data,
                                                                         tmp_path):
    for name in ('ant', 'bee'):
        shutil.copytree(small_data[0] / name, tmp_path / 'two' / name)
    data = tmp_path / 'two', tmp_path / 'two'
    done = train(1, '--initmodel', finished[0], data=data, check=False)
    assert done.returncode == 2
    assert 'weights for 3 classes, and the network has 2' in line_of_error(done)
    assert '--initmodel-skip fc' in line_of_error(done)
    train(1, '-B', '25', '-E', '1', '--eta-scale', '1e-9', '--transition', 'none', '--initmodel', finished[0],
          '--initmodel-skip', 'fc', data=data)
    with np.load(finished[0] / 'model.npz') as given, np.load(tmp_path / 'out' / 'model.npz') as weights:
        np.testing.assert_allclose(weights['res4/0/conv2/W'], given['res4/0/conv2/W'], atol=1e-6)
        np.testing.assert_allclose(weights['fc/W'], models.build('resnet8', 2).fc.W.array, atol=1e-6)


def test_plan_of_the_papers_job_is_printed_without_touching_anything(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'train_imagenet.py', '--plan', '--workers', '1024'], cwd=tmp_path, text=True,
        capture_output=True, check=True)
    for value in ('12.8', '3,519', '32,768', '25,557,032', '6.4 in epochs 0 to 40', 'resnet50'):
        assert value in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_of_other_workers_has_the_processes_that_play_them(capfd):
    args = arguments.parse(['--plan', '--workers', '1024', '--virtual-workers', '4', '--arch', 'resnet8'])
    assert train_imagenet.show_plan(args) == 0
    assert '1,024 = 256 processes x 4\n' in capfd.readouterr().out


def test_plan_may_be_cut_short_by_its_reader():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, 'train_imagenet.py', '--plan'], cwd=ROOT, text=True, stdout=writer,
                          stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, '')


def test_plan_that_a_full_disk_does_not_take_ends_in_one_line():
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, 'train_imagenet.py', '--plan'], cwd=ROOT, text=True,
                              stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert re.fullmatch(r'train_imagenet.py: standard output cannot be written .*\n', done.stderr)


@pytest.mark.parametrize('redirected', ['>&-', '2>&-', '>&- 2>&- <&-', '>/dev/full', '| true'])
def test_a_training_outlasts_its_terminal(small_data, tmp_path, redirected):
    done = subprocess.run(
        ['sh', '-c', f'"$@" {redirected}', 'sh', sys.executable, 'train_imagenet.py', *small_data, '--test',
         '--arch', 'resnet8', '--insize', '16', '-j', '0', '-B', '8', '-o', tmp_path / 'out'],
        cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'out' / 'finished').exists()
    assert len(json.loads((tmp_path / 'out' / 'log').read_text())) == 1


def test_divergence_names_the_learning_rate_first_and_where_in_the_schedule(train):
    done = train(2, '-B', '8', '-E', '1', '--eta-scale', '1e6', '--transition', 'none', check=False)
    assert done.returncode == 1
    line = line_of_error(done)
    assert re.search(r': iteration [2-9] \(epoch [\d.]+, phase 0 to 0.444444, eta [\d.]+\): '
                     r'the learning rate may be too high \(--eta-scale\); ', line), line


def test_no_mpi_library_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, 'train_imagenet.py', '-o', tmp_path / 'out'], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, 'MPI4PY_LIBMPI': '/nonexistent'})
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert 'no MPI for Python' in line and 'install the extra "mpi"' in line and '\\n' not in line


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT'])
def test_a_signal_during_the_imports_asks_for_another_start_after_them(tmp_path, name):
    (tmp_path / 'numpy.py').write_text(f"""if True:
        import os, signal, sys
        os.kill(os.getpid(), signal.{name})
        print('importing', flush=True)
        sys.path.remove({str(tmp_path)!r})
        del sys.modules['numpy']
        import numpy""")
    done = subprocess.run([sys.executable, 'train_imagenet.py'], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert (done.returncode, done.stdout) == (75, 'importing\n')
    assert re.fullmatch(f'train_imagenet.py: rank 0: {name} before an iteration was done: .*\n', done.stderr)


def test_a_signal_that_comes_with_the_handlers_asks_for_another_start():
    program = """if True:
        import os, signal, sys
        import train_imagenet
        install = train_imagenet.StopRequest.install

        def install_late(self):
            install(self)
            os.kill(os.getpid(), signal.SIGTERM)
            return self

        train_imagenet.StopRequest.install = install_late
        sys.exit(train_imagenet.main())"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 75
    assert re.fullmatch(r'train_imagenet.py: rank 0: SIGTERM before .*\n', done.stderr)


def test_a_rank_that_waits_for_the_lock_does_not_stand_still():
    program = """if True:
        import contextlib, faulthandler, time, types
        import train_imagenet
        from lib.run import arguments, lock, watchdog
        now = 0

        @contextlib.contextmanager
        def hold(out, wait):
            global now
            now += wait
            time.sleep(0.5)  # the watchdog looks every tenth of a second
            yield

        lock.hold = hold
        watchdog.time = types.SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
        faulthandler.dump_traceback_later = lambda *when, **more: None
        comm = types.SimpleNamespace(rank=0, Get_rank=lambda: 0, Get_size=lambda: 1)
        job = types.SimpleNamespace(comm=comm, watchdog=watchdog.StallWatchdog(comm, 0.4),
                                    everyone=lambda step: step(), first=lambda *step: None)
        with contextlib.ExitStack() as stack:
            train_imagenet.claim_output(arguments.parse(['--wait', '--stall-timeout', '0.4']), job, stack)
            job.watchdog.stop()
            print('held')"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ('held\n', '', 0)


def test_test_option_runs_a_few_iterations_and_one_validation(train, tmp_path):
    train(1, '-B', '8', '--test')
    log = json.loads((tmp_path / 'out' / 'log').read_text())
    assert [row['iteration'] for row in log] == [4]


def plan_of(*options, n_train=75, n_val=50):
    args = arguments.parse([*options])
    return train_imagenet.make_plan(args, n_train, n_val, train_imagenet.make_model(args, 3), processes=2)


def test_test_option_is_four_iterations_and_two_steps_of_validation():
    plan = plan_of('-B', '8', '-b', '10', '--test')
    assert (plan.iterations, plan.n_val) == (4, 40)
    assert plan_of('-B', '75', '-E', '1', '--test').iterations == 1
    assert plan_of('-b', '30', '--test').n_val == 50
    plan = plan_of('-B', '8', '-b', '10', '-E', '9')
    assert (plan.iterations, plan.n_val) == (43, 50)


def test_extensions_act_in_the_order_in_which_they_need_each_other(tmp_path):
    args = arguments.parse(['-o', str(tmp_path), '--stall-timeout', '60', '--bn-variance', 'pooled',
                            '--on-bad-image', 'skip'])
    model = train_imagenet.make_model(args, 3)
    plan = train_imagenet.make_plan(args, 75, 50, model, processes=1)
    comm = types.SimpleNamespace(rank=0, size=1, mpi_comm=None)
    optimizer = train_imagenet.make_optimizer(plan, model)
    updater = types.SimpleNamespace(plan=plan, comm=comm, model=model, statistics=None, timer=None,
                                    get_optimizer=lambda name: optimizer, get_all_optimizers=dict,
                                    connect_trainer=lambda trainer: None)
    trainer = train_imagenet.make_trainer(args, object(), updater, types.SimpleNamespace(skipped=[]), {}, {})
    names = ['RecipeSchedule', 'FiniteMeans', 'AveragedStatistics', 'Validation', 'SkippedImages',
             'IterationTimes', 'LogReport', 'Heartbeat', 'Table', 'Plots', 'Checkpointing']
    priority = {name: entry.priority for name, entry in trainer._extensions.items()}
    assert [name for name in sorted(priority, key=priority.get, reverse=True) if name in names] == names
    assert trainer.get_extension('AveragedStatistics')._variance == 'pooled'
    assert trainer._extensions['FiniteMeans'].trigger is trainer._extensions['Checkpointing'].trigger


def test_optimizer_is_the_papers_with_goyals_weight_decay():
    args = arguments.parse(['--dtype', 'mixed16'])
    model = train_imagenet.make_model(args, 3)
    plan = train_imagenet.make_plan(args, 75, 50, model, processes=8)
    optimizer = train_imagenet.make_optimizer(plan, model)
    assert (optimizer.lr, optimizer.mu1, optimizer.mu2, optimizer.eps) == (0.05, 0.9, 0.99, 1e-8)
    decay = {name: param.update_rule.hyperparam.weight_decay for name, param in model.namedparams()}
    assert {name for name in decay if decay[name] == 0} == {
        name for name in decay if name.endswith(('/gamma', '/beta'))}
    assert {value for value in decay.values() if value} == {1e-4}
    assert model.fc.W.update_rule._use_fp32_update


# Mistakes: one line, status 2 on every rank.

def line_of_error(done):
    """The program's one line; mpirun's own words about the status aside."""
    assert 'Traceback' not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith('train_imagenet.py: ')]
    assert len(lines) == 1, done.stderr
    return lines[0]


def copy_of(small_data, tmp_path):
    """Training folder that may be spoilt."""
    folder = tmp_path / 'train'
    for path in small_data[0].glob('*/*'):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.parent.name / path.name)
    return folder


def list_file(tmp_path, *lines):
    path = tmp_path / 'list.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


def missing_directory(small_data, tmp_path):
    return tmp_path / 'nowhere', small_data[1]


def empty_class(small_data, tmp_path):
    folder = copy_of(small_data, tmp_path)
    (folder / 'dog').mkdir()
    return folder, small_data[1]


def wrong_label(small_data, tmp_path):
    return list_file(tmp_path, f'{small_data[0]}/ant/ant_0.JPEG zero'), small_data[1]


def missing_file(small_data, tmp_path):
    return list_file(tmp_path, f'{small_data[0]}/ant/none.JPEG 0'), small_data[1]


def no_image(small_data, tmp_path):
    folder = copy_of(small_data, tmp_path)
    (folder / 'bee' / 'text.JPEG').write_text('not an image')
    return folder, small_data[1]


def no_validation_image(small_data, tmp_path):
    folder = tmp_path / 'val'
    (folder / 'bee').mkdir(parents=True)
    (folder / 'bee' / 'text.JPEG').write_text('not an image')
    return small_data[0], folder


def one_class(small_data, tmp_path):
    folders = [folder.parent / 'ant' for folder in (tmp_path / 'one' / 'x', tmp_path / 'two' / 'x')]
    for folder, source in zip(folders, small_data):
        shutil.copytree(source / 'ant', folder)
    return tuple(folder.parent for folder in folders)


@pytest.mark.parametrize('spoil, named', [
    (one_class, 'one class'),
    (missing_directory, 'nowhere'), (empty_class, 'dog'), (wrong_label, 'zero'), (missing_file, 'none.JPEG'),
    (no_image, 'text.JPEG'), (no_validation_image, 'text.JPEG')])
def test_bad_data_is_named_on_one_line(train, small_data, tmp_path, spoil, named):
    done = train(2, '-E', '1', '-B', '30', data=spoil(small_data, tmp_path), check=False)
    assert done.returncode == 2
    assert named in line_of_error(done)


@pytest.mark.parametrize('options, named', [
    (['--no-such-option'], '--no-such-option'), (['--batchsize', '0'], "'0'"),
    (['--resume', '/no/such/file.npz'], '/no/such/file.npz'),
    (['--out', '/dev/null/out'], '/dev/null/out'), (['--insize', '8', '--arch', 'resnet50'], '32 pixels'),
    (['--virtual-workers', '38'], '76 workers, but 75'),
    (['--initmodel', 'README.md'], 'README.md: not a weights file (no archive of arrays)'),
    (['--communicator', 'pure_nccl'], 'pure_nccl'),
    (['--initmodel-skip', 'fc'], '--initmodel')])
def test_bad_option_is_named_on_one_line(train, options, named):
    done = train(2, *options, check=False)
    assert done.returncode == 2
    assert named in line_of_error(done)


@pytest.mark.parametrize('other', [models.ResNet8(4), models.ResNet20(3)])
def test_weights_of_another_network_are_refused_on_one_line(train, tmp_path, other):
    chainer.serializers.save_npz(tmp_path / 'other.npz', other)
    done = train(2, '--initmodel', tmp_path / 'other.npz', check=False)
    assert done.returncode == 2
    assert 'other.npz' in line_of_error(done)


def test_bad_image_is_skipped_when_asked(train, small_data, tmp_path):
    done = train(2, '-E', '1', '-B', '8', '--on-bad-image', 'skip', data=no_image(small_data, tmp_path))
    assert 'text.JPEG' in done.stderr


def test_error_on_one_rank_is_everyones(train, tmp_path):
    # Event files are rank 0's, which meets a library that cannot be imported.
    (tmp_path / 'tensorboardX.py').write_text('raise ImportError')
    done = train(2, '--test', '--tensorboard', check=False, timeout=60,
                 env={'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'})
    assert done.returncode == 2
    assert 'tensorboardX' in line_of_error(done)


@pytest.mark.parametrize('options', [
    ['--dtype', 'mixed16', '--virtual-workers', '2', '--loss-scale', '128'],
    ['-j', '2', '--loader', 'thread', '--jitter', '--bn-variance', 'pooled'],
    ['--recipe', 'goyal', '--bn-statistics', 'last-local', '--virtual-workers', '2']])
def test_options_train_from_end_to_end(train, tmp_path, options):
    train(1, '-B', '4', '--test', *options)
    row, = json.loads((tmp_path / 'out' / 'log').read_text())
    assert np.isfinite(row['main/loss']) and 0 <= row['validation/main/accuracy'] <= 1


def test_list_files_train_like_directories(train, small_data, tmp_path):
    lists = []
    for name, folder in zip(('train', 'val'), small_data):
        lines = [f'{path.relative_to(folder.parent)} {label}\n' for label, directory in
                 enumerate(sorted(folder.iterdir())) for path in sorted(directory.iterdir())]
        lists.append(tmp_path / f'{name}.txt')
        lists[-1].write_text(''.join(lines))
    logs = []
    for data, options in ((small_data, []), (lists, ['--root', small_data[0].parent])):
        train(1, '-B', '8', '--test', '--force', *options, data=data)
        row, = json.loads((tmp_path / 'out' / 'log').read_text())
        logs.append((row['main/loss'], row['validation/main/loss']))
    assert logs[0] == logs[1]
