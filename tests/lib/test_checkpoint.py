from lib import compat  # noqa: F401, I001  (before anything that imports Chainer)

import errno
import io
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import zipfile

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from lib import checkpoint
from lib.checkpoint import DamagedCheckpoint, UnreadableCheckpoint
from lib.errors import UserError
from lib.optimizers import RMSpropWarmup

ARRAYS = {
    'model/fc/W': np.arange(6, dtype=np.float32).reshape(2, 3),
    'model/half': np.array([1.5, -0.0, np.nan], np.float16),
    'optimizer/t': np.array(7),
    'empty': np.empty((0, 4), np.float64),
    'flags': np.array([True, False]),
}
DESCRIPTION = {'job': {'seed': 0, 'arch': 'resnet8'}, 'iteration': 7, 'epoch': 0.1, 'log': [{'lr': 1e-3}]}


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        arrays[name].dtype == others[name].dtype and arrays[name].shape == others[name].shape
        and arrays[name].tobytes() == others[name].tobytes() for name in arrays)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / 'checkpoint.npz'
    checkpoint.write(path, ARRAYS, DESCRIPTION)
    return path


# One file

def test_round_trip_keeps_every_byte_dtype_and_shape(written):
    arrays, description = checkpoint.read(written)
    assert same(arrays, ARRAYS)
    assert description == DESCRIPTION


def test_equal_content_gives_equal_files(written, tmp_path):
    other = tmp_path / 'other.npz'
    checkpoint.write(other, dict(reversed(ARRAYS.items())), DESCRIPTION)
    assert other.read_bytes() == written.read_bytes()


def test_numpy_alone_reads_a_checkpoint(written):
    with np.load(written, allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz['model/fc/W'], ARRAYS['model/fc/W'])
        assert json.loads(npz['description'].item()) == DESCRIPTION


def test_arrays_in_fortran_order_and_with_gaps_round_trip(tmp_path):
    base = np.arange(24.).reshape(4, 6)
    arrays = {'fortran': np.asfortranarray(base), 'gaps': base[::2, ::3], 'reversed': base[::-1]}
    checkpoint.write(tmp_path / 'a.npz', arrays, {})
    read, _ = checkpoint.read(tmp_path / 'a.npz')
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize('arrays, error', [
    ({'a': np.array(None)}, TypeError),
    ({'a': np.array(['x', 1], object)}, TypeError),
    ({'description': np.zeros(1)}, ValueError),
    ({'sha256': np.zeros(1)}, ValueError),
])
def test_refuses_what_would_need_pickle_and_reserved_names(tmp_path, arrays, error):
    with pytest.raises(error):
        checkpoint.write(tmp_path / 'a.npz', arrays, {})
    assert os.listdir(tmp_path) == []


def test_every_truncation_is_found(written):
    for length in reversed(range(os.path.getsize(written))):
        os.truncate(written, length)
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(written)


@pytest.mark.parametrize('flip', [0x01, 0xff])
def test_every_changed_byte_is_found_or_harmless(tmp_path, flip):
    # Bytes that mean nothing, such as the files' dates in the zip directory, may change unnoticed.
    path = tmp_path / 'a.npz'
    arrays = {'model/W': np.arange(4, dtype=np.float32), 'optimizer/t': np.array(3)}
    checkpoint.write(path, arrays, {'iteration': 3})
    content = path.read_bytes()
    harmless = 0
    with open(path, 'r+b', buffering=0) as file:
        for position, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ flip]), position)
            try:
                read, description = checkpoint.read(path)
            except DamagedCheckpoint:
                pass
            else:
                harmless += 1
                assert same(read, arrays) and description == {'iteration': 3}, position
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert harmless < len(content) / 4


def test_an_array_exchanged_with_a_valid_zip_checksum_is_found(written):
    with zipfile.ZipFile(written) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = members['model/fc/W.npy'].replace(np.float32(5).tobytes(), np.float32(6).tobytes())
    assert changed != members['model/fc/W.npy']
    with zipfile.ZipFile(written, 'w') as archive:
        for name, content in {**members, 'model/fc/W.npy': changed}.items():
            archive.writestr(name, content)
    with pytest.raises(DamagedCheckpoint, match='does not match its checksum'):
        checkpoint.read(written)


def test_a_header_that_promises_a_huge_array_is_damage_not_memory(written):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {'descr': '<f4', 'fortran_order': False,
                                                  'shape': (1 << 40, 1 << 40)})
    with zipfile.ZipFile(written, 'a') as archive:
        archive.writestr('bomb.npy', member.getvalue())
    with pytest.raises(DamagedCheckpoint, match='bomb'):
        checkpoint.read(written)


def test_an_entry_beyond_the_end_of_the_file_is_damage_not_lack_of_memory(written):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False,
                                                  'shape': (1 << 60,)})
    with zipfile.ZipFile(written, 'a') as archive:
        archive.writestr('bomb.npy', header.getvalue())
        info = archive.getinfo('bomb.npy')
        info.file_size = info.compress_size = len(header.getvalue()) + (1 << 60)
    with pytest.raises(DamagedCheckpoint, match='bomb.npy: larger than the file'):
        checkpoint.read(written)


def test_compressed_bombs_are_refused_before_they_unfold(written):
    with zipfile.ZipFile(written, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('bomb.npy', bytes(1 << 20))
    with pytest.raises(DamagedCheckpoint, match='not an uncompressed array'):
        checkpoint.read(written)


def foreign_files(directory):
    def make(name, content):
        (directory / name).write_bytes(content)

    make('empty.npz', b'')
    make('text.npz', b'not a zip file\n' * 20)
    make('pickle.npz', pickle.dumps({'a': 1}))
    np.savez(directory / 'weights.npz', W=np.zeros(3))
    np.savez(directory / 'objects.npz', description=np.array(None), sha256=np.array([{}], object))
    np.save(directory / 'array.npy', np.zeros(3))
    with zipfile.ZipFile(directory / 'zip.npz', 'w') as archive:
        archive.writestr('description.npy', b'')
        archive.writestr('sha256.npy', b'')
    (directory / 'directory.npz').mkdir()
    os.mkfifo(directory / 'pipe.npz')
    os.symlink('loop.npz', directory / 'loop.npz')
    return [*directory.iterdir(), directory / 'missing.npz', directory / 'text.npz' / 'below.npz']


def test_foreign_files_are_named_with_a_reason_on_one_line(tmp_path):
    for path in foreign_files(tmp_path):
        with pytest.raises(DamagedCheckpoint) as caught:
            checkpoint.read(path)
        assert caught.value.path == str(path)
        assert caught.value.reason
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_damaged_checkpoint_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(DamagedCheckpoint('a.npz', 'empty file')))
    assert (error.path, error.reason) == ('a.npz', 'empty file')
    assert isinstance(error, UserError)


# Failing to write

@pytest.fixture
def small_files_only():
    """The kernel lets no file grow beyond 4 KiB; Python ignores the signal and sees EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = {'a': np.arange(100_000)}


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(written, small_files_only):
    before = written.read_bytes()
    with pytest.raises(OSError) as caught:
        checkpoint.write(written, BIG, {})
    assert caught.value.errno == errno.EFBIG
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def open_full(path, mode):
    open(path, mode).close()
    return open('/dev/full', mode)


def test_a_full_disk_is_an_oserror_and_the_temporary_file_goes(written, monkeypatch):
    before = written.read_bytes()
    monkeypatch.setattr(checkpoint, 'open', open_full, raising=False)
    for arrays in ({'a': np.zeros(1)}, BIG):  # fails at the flush, and while writing
        with pytest.raises(OSError) as caught:
            checkpoint.write(written, arrays, {})
        assert caught.value.errno == errno.ENOSPC
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, 'fsync', lambda fd: (events.append(os.readlink(f'/proc/self/fd/{fd}')), fsync(fd)))
    monkeypatch.setattr(os, 'replace', lambda *names: (events.append('rename'), replace(*names)))
    checkpoint.write(tmp_path / 'a.npz', ARRAYS, {})
    content, rename, directory = events
    assert content.startswith(f'{tmp_path}/a.npz.')
    assert (rename, directory) == ('rename', str(tmp_path))


WRITER = '''
import sys
import numpy as np
from lib import checkpoint
arrays = {'a': np.arange(100_000)}
print('ready', flush=True)
for iteration in range(1, 1000000):
    checkpoint.write(checkpoint.path_of(sys.argv[1], iteration), arrays, {'iteration': iteration})
    print(iteration, flush=True)
'''


def test_a_killed_writer_leaves_no_half_file_under_a_checkpoints_name(tmp_path):
    random = np.random.RandomState(0)
    for round in range(3):
        out = tmp_path / str(round)
        process = subprocess.Popen([sys.executable, '-c', WRITER, out], stdout=subprocess.PIPE,
                                   env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
        assert process.stdout.readline() == b'ready\n'
        for _ in range(3):
            process.stdout.readline()
        select.select([], [], [], random.uniform(0, 0.02))  # somewhere within a write
        process.kill()
        last = int((process.communicate()[0].split() or [b'3'])[-1])
        for path in checkpoint.list_checkpoints(out):
            assert np.array_equal(checkpoint.read(path)[0]['a'], np.arange(100_000))
        assert len(checkpoint.list_checkpoints(out)) >= last
        checkpoint.prune(out, 1)
        assert len(os.listdir(out / 'checkpoint')) == 1  # the temporary file of the dead is gone


# The directory

def write_iterations(out, *iterations):
    for iteration in iterations:
        checkpoint.write(checkpoint.path_of(out, iteration), ARRAYS, {'iteration': iteration})


def damage(path):
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)


def iterations_of(out):
    return [int(path.name[10:-4]) for path in checkpoint.list_checkpoints(out)]


def test_names_are_as_documented(tmp_path):
    assert checkpoint.path_of(tmp_path, 123) == tmp_path / 'checkpoint' / 'iteration-00000123.npz'


def test_checkpoints_are_listed_newest_first_and_other_files_ignored(tmp_path):
    assert checkpoint.list_checkpoints(tmp_path) == []
    write_iterations(tmp_path, 99999999, 5, 100000000, 20)
    for name in ('iteration-7.npz', 'iteration-00000008.npz.bak', 'notes'):
        (tmp_path / 'checkpoint' / name).write_text('')
    assert iterations_of(tmp_path) == [100000000, 99999999, 20, 5]


def test_newest_valid_passes_damaged_ones_over_and_names_them(tmp_path):
    write_iterations(tmp_path, 1, 2, 3)
    damage(checkpoint.path_of(tmp_path, 3))
    damage(checkpoint.path_of(tmp_path, 2))
    said = []
    path, arrays, description = checkpoint.newest_valid(tmp_path, said.append)
    assert path == checkpoint.path_of(tmp_path, 1)
    assert same(arrays, ARRAYS) and description == {'iteration': 1}
    assert ['00000003' in said[0], '00000002' in said[1], len(said)] == [True, True, 2]


def test_newest_valid_is_none_without_any(tmp_path):
    assert checkpoint.newest_valid(tmp_path, pytest.fail) is None


def test_checkpoints_that_are_all_damaged_are_not_taken_for_none(tmp_path):
    write_iterations(tmp_path, 1, 2)
    damage(checkpoint.path_of(tmp_path, 1))
    damage(checkpoint.path_of(tmp_path, 2))
    said = []
    with pytest.raises(UserError, match=r'none of its checkpoints \(2\) is valid.*--force'):
        checkpoint.newest_valid(tmp_path, said.append)
    assert len(said) == 2
    assert iterations_of(tmp_path) == [2, 1]


def no_permission(path, mode):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def bad_disk(path, mode):
    class Bad(io.FileIO):
        def readinto(self, buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return io.BufferedReader(Bad(path, mode))


def disk_that_is_bad_behind_the_directory_of_the_zip(path, mode):
    class Bad(io.FileIO):
        def readinto(self, buffer):
            if self.tell() < 100:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer)

    return io.BufferedReader(Bad(path, mode), 64)


@pytest.fixture(params=['no permission', 'bad disk', 'bad sector', 'no memory'])
def unreadable(request, monkeypatch):
    """``unreadable(*iterations)``: the system does not let these checkpoints be read; says the reason."""
    open_faulty, reason = {
        'no permission': (no_permission, 'Permission denied'),
        'bad disk': (bad_disk, 'Input/output error'),
        'bad sector': (disk_that_is_bad_behind_the_directory_of_the_zip, 'Input/output error'),
        'no memory': (open, 'Unable to allocate'),
    }[request.param]

    def make(*iterations):
        faulty = tuple(f'iteration-{iteration:08d}.npz' for iteration in iterations)
        opened = []

        def open_some(path, mode):
            opened.append(str(path))
            return (open_faulty if str(path).endswith(faulty) else open)(path, mode)

        def allocate(shape, dtype):
            if opened[-1].endswith(faulty):
                raise MemoryError(reason)
            return np.zeros(shape, dtype)

        monkeypatch.setattr(checkpoint, 'open', open_some, raising=False)
        if open_faulty is open:
            monkeypatch.setattr(np, 'empty', allocate)
        return reason

    return make


def test_unreadable_checkpoint_is_an_error_and_never_passed_over(tmp_path, unreadable):
    write_iterations(tmp_path, 1, 2)
    reason = unreadable(2)
    with pytest.raises(UnreadableCheckpoint, match=f'00000002.npz: cannot be read now .{reason}'):
        checkpoint.newest_valid(tmp_path, pytest.fail)
    with pytest.raises(UnreadableCheckpoint, match=reason):
        checkpoint.read(checkpoint.path_of(tmp_path, 2))
    assert checkpoint.read(checkpoint.path_of(tmp_path, 1))[1] == {'iteration': 1}


def test_prune_does_not_take_unreadable_for_damaged(tmp_path, unreadable):
    write_iterations(tmp_path, 1, 2, 3, 4, 5)
    damage(checkpoint.path_of(tmp_path, 4))
    unreadable(5, 3, 1)
    checkpoint.prune(tmp_path, 1)
    assert iterations_of(tmp_path) == [5, 3, 2]  # the newest valid one, and what may be a newer one


def test_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    write_iterations(tmp_path, 1)

    def listdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, 'listdir', listdir)
    with pytest.raises(UnreadableCheckpoint, match='checkpoint: cannot be read now .Permission denied'):
        checkpoint.newest_valid(tmp_path, pytest.fail)


def test_prune_keeps_the_newest(tmp_path):
    write_iterations(tmp_path, 1, 2, 3, 4)
    checkpoint.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3]
    checkpoint.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3]


def test_prune_never_removes_the_only_valid_one(tmp_path):
    write_iterations(tmp_path, 1, 2, 3, 4)
    damage(checkpoint.path_of(tmp_path, 4))
    damage(checkpoint.path_of(tmp_path, 3))
    checkpoint.prune(tmp_path, 2)
    assert iterations_of(tmp_path) == [4, 3, 2]


def test_temporary_files_go_when_their_writer_is_dead(tmp_path, monkeypatch):
    alive = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    kept, gone = [], []
    # The name a writer gives its temporary file, taken from a write that is interrupted.
    for pid, names in ((os.getpid(), kept), (alive.pid, kept), (dead.pid, gone)):
        monkeypatch.setattr(os, 'getpid', lambda pid=pid: pid)
        for directory in (tmp_path, tmp_path / 'checkpoint'):
            with checkpoint.replacing(directory / 'iteration-00000001.npz'):
                names += [path for path in directory.iterdir() if str(pid) in path.name]
    monkeypatch.undo()
    kept, gone = set(kept), set(gone)
    elsewhere = tmp_path / 'checkpoint' / f'iteration-00000001.npz.partial-another.host-{os.getpid()}'
    gone.add(elsewhere)
    for path in kept | gone:
        path.write_text('')
    checkpoint.prune(tmp_path, 1)
    alive.communicate(b'\n')
    assert len(kept) == 4 and len(gone) == 3
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


def test_remove_all_leaves_other_files(tmp_path):
    write_iterations(tmp_path, 1, 2)
    (tmp_path / 'checkpoint' / 'notes').write_text('')
    checkpoint.remove_all(tmp_path)
    assert os.listdir(tmp_path / 'checkpoint') == ['notes']


# Jobs

def test_equal_jobs_have_no_differences_after_a_round_trip(tmp_path):
    job = {'seed': 0, 'betas': (10, 5.5), 'recipe': {'transition': 'continuous', 'eta_scale': 1 / 3}}
    checkpoint.write(tmp_path / 'a.npz', {}, {'job': job})
    assert checkpoint.compare_jobs(checkpoint.read(tmp_path / 'a.npz')[1]['job'], job) == []


def test_differences_are_spelled_out():
    saved = {'seed': 0, 'recipe': {'transition': 'continuous', 'eta': 0.1}, 'gone': True}
    current = {'seed': 1, 'recipe': {'transition': 'printed', 'eta': 0.1}, 'new': None}
    assert checkpoint.compare_jobs(saved, current) == [
        'seed: 0 in the checkpoint, 1 now',
        'recipe.transition: continuous in the checkpoint, printed now',
        'new: not given in the checkpoint, null now',
        'gone: true in the checkpoint, not given now',
    ]


# In the background

def test_background_writes_are_complete_at_close(tmp_path):
    writer = checkpoint.BackgroundWriter()
    done = []
    for iteration in (1, 2, 3):
        assert writer.submit(checkpoint.path_of(tmp_path, iteration), ARRAYS, {'iteration': iteration},
                             done.append) is None
    assert writer.close() is None
    assert done == [checkpoint.path_of(tmp_path, iteration) for iteration in (1, 2, 3)]
    assert same(checkpoint.newest_valid(tmp_path, pytest.fail)[1], ARRAYS)


def test_one_write_at_a_time_in_a_thread_of_its_own(tmp_path, monkeypatch):
    release, events = threading.Event(), []

    def slow_write(path, arrays, description):
        events.append(('begin', path, threading.current_thread().daemon))
        release.wait(10)
        events.append(('end', path))

    monkeypatch.setattr(checkpoint, 'write', slow_write)
    writer = checkpoint.BackgroundWriter()
    writer.submit('first', {}, {})
    assert writer.failure() is None  # does not wait: the first one is not released yet
    threading.Timer(0.05, release.set).start()
    writer.submit('second', {}, {})
    writer.close()
    assert events == [('begin', 'first', False), ('end', 'first'),
                      ('begin', 'second', False), ('end', 'second')]


def test_a_background_failure_is_told_once_and_the_next_one_written(tmp_path, monkeypatch):
    writer = checkpoint.BackgroundWriter()
    done = []
    monkeypatch.setattr(checkpoint, 'open', open_full, raising=False)
    assert writer.submit(checkpoint.path_of(tmp_path, 1), BIG, {}, done.append) is None
    failure = writer.close()
    assert 'iteration-00000001.npz' in failure and 'No space left' in failure
    assert writer.close() is None
    monkeypatch.undo()
    (tmp_path / 'blocked').write_text('a file in the place of the output directory')
    assert writer.submit(checkpoint.path_of(tmp_path / 'blocked', 2), BIG, {}, done.append) is None
    failure = writer.submit(checkpoint.path_of(tmp_path, 3), BIG, {}, done.append)
    assert 'iteration-00000002.npz' in failure and '\n' not in failure
    assert writer.close() is None
    assert done == [checkpoint.path_of(tmp_path, 3)]
    assert os.listdir(tmp_path / 'checkpoint') == ['iteration-00000003.npz']


def test_a_background_fault_that_no_disk_explains_is_raised():
    writer = checkpoint.BackgroundWriter()
    writer.submit('never.npz', {'a': np.array(None)}, {})
    with pytest.raises(TypeError, match='object'):
        writer.close()


def test_a_program_that_ends_without_close_finishes_its_file(tmp_path):
    code = (WRITER.split('print')[0] + 'checkpoint.BackgroundWriter().submit('
            'checkpoint.path_of(sys.argv[1], 1), {"a": np.zeros(3_000_000)}, {})')
    subprocess.run([sys.executable, '-c', code, tmp_path], check=True,
                   env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert iterations_of(tmp_path) == [1]
    assert checkpoint.newest_valid(tmp_path, pytest.fail) is not None


# Model and optimizer

class Network(chainer.Chain):

    def __init__(self, n_out=3, dtype=np.float32):
        super().__init__()
        with chainer.using_config('dtype', dtype), self.init_scope():
            self.fc = L.Linear(4, n_out)
            self.bn = L.BatchNormalization(n_out)

    def forward(self, x):
        return self.bn(self.fc(x))


def make(n_out=3, dtype=np.float32, seed=0):
    np.random.seed(seed)
    model = Network(n_out, dtype)
    optimizer = RMSpropWarmup(lr=0.01, alpha_sgd=0.5, alpha_rmsprop=0.5)
    if dtype == chainer.mixed16:
        optimizer.use_fp32_update()
    return model, optimizer.setup(model)


def train(model, optimizer, first, last):
    for iteration in range(first, last):
        x = np.random.RandomState(iteration).randn(8, 4).astype(model.fc.W.dtype)
        model.cleargrads()
        F.sum(F.cast(model(x), 'float32') ** 3).backward()
        optimizer.update()


@pytest.mark.parametrize('dtype', [np.float32, chainer.mixed16])
@pytest.mark.parametrize('used', [False, True])
def test_a_restored_run_continues_to_the_same_bytes(tmp_path, dtype, used):
    model, optimizer = make(dtype=dtype)
    train(model, optimizer, 0, 3)
    checkpoint.write(tmp_path / 'a.npz', checkpoint.flatten(model, optimizer), {})
    train(model, optimizer, 3, 6)

    resumed, its_optimizer = make(dtype=dtype, seed=1)
    if used:
        train(resumed, its_optimizer, 20, 22)
    checkpoint.restore(checkpoint.read(tmp_path / 'a.npz')[0], resumed, its_optimizer)
    train(resumed, its_optimizer, 3, 6)
    assert same(checkpoint.flatten(resumed, its_optimizer), checkpoint.flatten(model, optimizer))


def test_flatten_names_everything_and_shares_no_memory():
    model, optimizer = make(dtype=chainer.mixed16)
    train(model, optimizer, 0, 1)
    arrays = checkpoint.flatten(model, optimizer)
    params = ['fc/W', 'fc/b', 'bn/gamma', 'bn/beta']
    rules = [f'{param}/{entry}' for param in params for entry in ('t', 'm', 'delta')]
    masters = [f'{name}/fp32_param' for name, param in model.namedparams() if param.dtype == np.float16]
    assert len(masters) >= 2
    assert set(arrays) == {f'model/{name}' for name in [*params, 'bn/avg_mean', 'bn/avg_var', 'bn/N']} | {
        f'optimizer/{name}' for name in ['t', 'epoch', *rules]} | {f'optimizer{name}' for name in masters}
    assert all(arrays[f'optimizer{name}'].dtype == np.float32 for name in masters)
    before = {name: array.copy() for name, array in arrays.items()}
    train(model, optimizer, 1, 2)
    assert same(arrays, before)


def test_before_the_first_update_there_is_no_state_to_save_or_restore():
    model, optimizer = make()
    arrays = checkpoint.flatten(model, optimizer)
    assert arrays['optimizer/fc/W/t'] == 0 and 'optimizer/fc/W/m' not in arrays
    train(model, optimizer, 0, 2)

    resumed, its_optimizer = make(seed=1)
    train(resumed, its_optimizer, 20, 22)
    checkpoint.restore(arrays, resumed, its_optimizer)
    train(resumed, its_optimizer, 0, 2)
    assert same(checkpoint.flatten(resumed, its_optimizer), checkpoint.flatten(model, optimizer))


def test_restore_keeps_the_arrays_it_fills():
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    arrays = checkpoint.flatten(model, optimizer)
    weights, state = model.fc.W.array, model.fc.W.update_rule.state['m']
    train(model, optimizer, 1, 2)
    checkpoint.restore({**arrays, 'workers/statistics': np.zeros(3)}, model, optimizer)
    assert model.fc.W.array is weights and model.fc.W.update_rule.state['m'] is state
    assert same(checkpoint.flatten(model, optimizer), arrays)


@pytest.mark.parametrize('change, message', [
    (lambda a: a.pop('model/fc/W'), 'model/fc/W is not in the file'),
    (lambda a: a.pop('optimizer/fc/W/m'), 'optimizer/fc/W/m is not in the file'),
    (lambda a: a.pop('optimizer/t'), 'optimizer/t is not in the file'),
    (lambda a: a.pop('model/bn/N'), 'model/bn/N is not in the file'),
    (lambda a: a.update({'model/fc2/W': np.zeros(1)}), 'the file also has model/fc2/W'),
    (lambda a: a.update({'optimizer/fc/W/x': np.zeros(1)}), 'the file also has optimizer/fc/W/x'),
    (lambda a: a.update({'model/fc/b': np.zeros(4, 'f')}), r"has shape \(3,\), the file's is \(4,\)"),
    (lambda a: a.update({'model/fc/b': np.zeros(3, 'd')}), "has dtype float32, the file's is float64"),
    (lambda a: a.update({'optimizer/fc/b/m': np.zeros((), 'f')}), r"shape \(3,\), the file's is \(\)"),
])
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_unchanged(change, message):
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    arrays = checkpoint.flatten(model, optimizer)
    change(arrays)
    other, its_optimizer = make(seed=1)
    train(other, its_optimizer, 0, 1)
    before = checkpoint.flatten(other, its_optimizer)
    with pytest.raises(UserError, match=message):
        checkpoint.restore(arrays, other, its_optimizer)
    assert same(checkpoint.flatten(other, its_optimizer), before)


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.kill, (os.getpid(), signal.SIGKILL)

    np.savez(tmp_path / 'trap.npz', **{'fc/W': np.array([Trap()], object)})
    (tmp_path / 'trap.pkl').write_bytes(pickle.dumps(Trap()))
    for name in ('trap.npz', 'trap.pkl'):
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(tmp_path / name)
