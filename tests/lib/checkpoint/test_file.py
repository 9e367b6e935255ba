"""One file: what it holds, and what becomes of a damaged one."""

import errno
import io
import json
import os
import pickle
import zipfile

from lib import files
from lib.checkpoint import file
from lib.checkpoint.file import DamagedCheckpoint
from lib.errors import UserError

import numpy as np
import pytest

from tests.lib.checkpoint.examples import ARRAYS, BIG, description, foreign_files, open_full, same

DESCRIBED = description()


@pytest.fixture
def written(tmp_path):
    path = tmp_path / 'checkpoint.npz'
    file.write(path, ARRAYS, DESCRIBED)
    return path


def test_round_trip_keeps_every_byte_dtype_and_shape(written):
    arrays, description = file.read(written)
    assert same(arrays, ARRAYS)
    assert description == DESCRIBED


def test_equal_content_gives_equal_files(written, tmp_path):
    other = tmp_path / 'other.npz'
    file.write(other, dict(reversed(ARRAYS.items())), DESCRIBED)
    assert other.read_bytes() == written.read_bytes()


def test_numpy_alone_reads_a_checkpoint(written):
    with np.load(written, allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz['model/fc/W'], ARRAYS['model/fc/W'])
        assert json.loads(npz['description'].item()) == DESCRIBED


def test_arrays_in_fortran_order_and_with_gaps_round_trip(tmp_path):
    base = np.arange(24.).reshape(4, 6)
    arrays = {'fortran': np.asfortranarray(base), 'gaps': base[::2, ::3], 'reversed': base[::-1]}
    file.write(tmp_path / 'a.npz', arrays, DESCRIBED)
    read, _ = file.read(tmp_path / 'a.npz')
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize('arrays, error', [
    ({'a': np.array(None)}, TypeError),
    ({'a': np.array(['x', 1], object)}, TypeError),
    ({'a': np.zeros(3, [('x', 'f4'), ('y', 'i4')])}, TypeError),
    ({'description': np.zeros(1)}, ValueError),
    ({'sha256': np.zeros(1)}, ValueError),
])
def test_refuses_what_would_need_pickle_and_reserved_names(tmp_path, arrays, error):
    with pytest.raises(error):
        file.write(tmp_path / 'a.npz', arrays, DESCRIBED)
    assert os.listdir(tmp_path) == []


def test_every_truncation_is_found(written):
    for length in reversed(range(os.path.getsize(written))):
        os.truncate(written, length)
        with pytest.raises(DamagedCheckpoint):
            file.read(written)


@pytest.mark.parametrize('flip', [0x01, 0xff])
def test_every_changed_byte_is_found_or_harmless(tmp_path, flip):
    # Bytes that mean nothing, such as the files' dates in the zip directory, may change unnoticed.
    path = tmp_path / 'a.npz'
    arrays = {'model/W': np.arange(4, dtype=np.float32), 'optimizer/t': np.array(3)}
    file.write(path, arrays, DESCRIBED)
    content = path.read_bytes()
    harmless = 0
    with open(path, 'r+b', buffering=0) as changed:
        for position, byte in enumerate(content):
            os.pwrite(changed.fileno(), bytes([byte ^ flip]), position)
            try:
                read, description = file.read(path)
            except DamagedCheckpoint:
                pass
            else:
                harmless += 1
                assert same(read, arrays) and description == DESCRIBED, position
            os.pwrite(changed.fileno(), bytes([byte]), position)
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
        file.read(written)


def npy(array, **header):
    """The bytes of ``array`` behind a header of another order, dtype or shape."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {'descr': array.dtype.str, 'fortran_order': False, 'shape': array.shape, **header})
    return member.getvalue() + array.tobytes()


W = ARRAYS['model/fc/W']


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('changed, reason', [
    ([('model/fc/V.npy', npy(W))], 'does not match its checksum'),
    ([('model/fc/W.npy', npy(W, descr='<i4'))], 'does not match its checksum'),
    ([('model/fc/W.npy', npy(W, shape=(3, 2)))], 'does not match its checksum'),
    ([('model/fc/W.npy', npy(W, fortran_order=True))], 'not a plain array'),
    ([('model/fc/W.npy', npy(W, descr=[('a', '<f4')]))], 'not a plain array'),
    ([('model/fc/W.npy', npy(W) + b' ')], 'bytes for shape'),
    ([('model/fc/W.npy', npy(W)[:-1])], 'bytes for shape'),
    ([('model/fc/W.npy', npy(W))] * 2, 'not written by this program'),
], ids=['name', 'dtype', 'shape', 'Fortran', 'structured', 'longer', 'shorter', 'double'])
def test_an_array_that_is_told_otherwise_is_found(written, changed, reason):
    with zipfile.ZipFile(written) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members['model/fc/W.npy']
    with zipfile.ZipFile(written, 'w') as archive:
        for name, content in [*members.items(), *changed]:
            archive.writestr(name, content)
    with pytest.raises(DamagedCheckpoint, match=reason):
        file.read(written)


def test_a_header_that_promises_a_huge_array_is_damage_not_memory(written):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {'descr': '<f4', 'fortran_order': False,
                                                  'shape': (1 << 40, 1 << 40)})
    with zipfile.ZipFile(written, 'a') as archive:
        archive.writestr('bomb.npy', member.getvalue())
    with pytest.raises(DamagedCheckpoint, match='bomb'):
        file.read(written)


def test_an_entry_beyond_the_end_of_the_file_is_damage_not_lack_of_memory(written):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False,
                                                  'shape': (1 << 60,)})
    with zipfile.ZipFile(written, 'a') as archive:
        archive.writestr('bomb.npy', header.getvalue())
        info = archive.getinfo('bomb.npy')
        info.file_size = info.compress_size = len(header.getvalue()) + (1 << 60)
    with pytest.raises(DamagedCheckpoint, match='bomb.npy: larger than the file'):
        file.read(written)


def test_compressed_bombs_are_refused_before_they_unfold(written):
    with zipfile.ZipFile(written, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('bomb.npy', bytes(1 << 20))
    with pytest.raises(DamagedCheckpoint, match='not an uncompressed array'):
        file.read(written)


def test_foreign_files_are_named_with_a_reason_on_one_line(tmp_path):
    for path in foreign_files(tmp_path):
        with pytest.raises(DamagedCheckpoint) as caught:
            file.read(path)
        assert caught.value.path == str(path)
        assert caught.value.reason
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('key', ['job', 'iteration', 'log', 'elapsed_time'])
@pytest.mark.parametrize('value', ['none', None, 'text', [1], True, {'iterations': 'many'}])
def test_a_description_without_what_a_run_continues_from_is_damage(tmp_path, key, value):
    forged = description()
    if value == 'none':
        del forged[key]
    else:
        forged[key] = value
    file.write(tmp_path / 'a.npz', ARRAYS, forged)
    with pytest.raises(DamagedCheckpoint):
        file.read(tmp_path / 'a.npz')


@pytest.mark.parametrize('forged', [
    description(10 ** 12), description(-1), description(7.0),
    description(versions=None), description(versions=[]), description(elapsed_time=-1),
    description(elapsed_time=float('nan')), description(elapsed_time=float('inf')),
    description(elapsed_time=10 ** 400), description(log=[{'epoch': 1, 'iteration': 1, 'lr': 10 ** 400}]),
    {key: value for key, value in description().items() if key != 'versions'},
    description(log=[{'epoch': '1', 'iteration': 1}]), description(log=[{}]), description(log=['row']),
    [], 'text', 7, None])
def test_a_description_that_no_run_has_written_is_damage(tmp_path, forged):
    file.write(tmp_path / 'a.npz', ARRAYS, forged)
    with pytest.raises(DamagedCheckpoint):
        file.read(tmp_path / 'a.npz')


def test_a_log_may_hold_what_is_not_finite(tmp_path):
    file.write(tmp_path / 'a.npz', {}, description(log=[{'epoch': 1, 'iteration': 1, 'loss': float('inf')}]))
    assert file.read(tmp_path / 'a.npz')[1]['log'][0]['loss'] == float('inf')


def test_a_description_takes_a_byte_per_character(tmp_path):
    rows = [{'epoch': row, 'iteration': row} for row in range(10_000)]
    file.write(tmp_path / 'a.npz', {}, description(log=rows))
    characters = len(json.dumps(description(log=rows), separators=(',', ':')))
    assert characters < os.path.getsize(tmp_path / 'a.npz') < characters + 2000


def test_descriptions_of_four_bytes_per_character_are_still_read(tmp_path, monkeypatch):
    # As files had them before: a Unicode array, with spaces.
    asarray = np.asarray
    monkeypatch.setattr(np, 'asarray', lambda value, *rest, **more: asarray(
        json.dumps(json.loads(value)) if isinstance(value, bytes) else value, *rest, **more))
    file.write(tmp_path / 'a.npz', ARRAYS, DESCRIBED)
    monkeypatch.undo()
    with np.load(tmp_path / 'a.npz') as npz:
        assert npz['description'].dtype.kind == 'U'
    assert file.read(tmp_path / 'a.npz')[1] == DESCRIBED


def test_damaged_checkpoint_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(DamagedCheckpoint('a.npz', 'empty file')))
    assert (error.path, error.reason) == ('a.npz', 'empty file')
    assert isinstance(error, UserError)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(written, full_disk):
    before = written.read_bytes()
    with full_disk(4096), pytest.raises(OSError) as caught:
        file.write(written, BIG, DESCRIBED)
    assert caught.value.errno == errno.EFBIG
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_a_full_disk_is_an_oserror_and_the_temporary_file_goes(written, monkeypatch):
    before = written.read_bytes()
    monkeypatch.setattr(files, 'open', open_full, raising=False)
    for arrays in ({'a': np.zeros(1)}, BIG):  # fails at the flush, and while writing
        with pytest.raises(OSError) as caught:
            file.write(written, arrays, DESCRIBED)
        assert caught.value.errno == errno.ENOSPC
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, 'fsync', lambda fd: (events.append(os.readlink(f'/proc/self/fd/{fd}')), fsync(fd)))
    monkeypatch.setattr(os, 'replace', lambda *names: (events.append('rename'), replace(*names)))
    file.write(tmp_path / 'a.npz', ARRAYS, DESCRIBED)
    content, rename, directory = events
    assert content.startswith(f'{tmp_path}/a.npz.')
    assert (rename, directory) == ('rename', str(tmp_path))
