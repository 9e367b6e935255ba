import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

from lib import errors
from lib.data import datasets
from lib.prepare import __main__ as prepare

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(prepare.__file__).resolve().parents[2]
CLASSES = ['n01440764', 'n01751748', 'n02105855']


def jpeg(seed, size=(64, 48), mode='RGB', kind='JPEG', **options):
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.BICUBIC).convert(mode).save(file, kind, **options)
    return file.getvalue()


def make_tree(top, per_class=3, splits=('train', 'val'), size=(64, 48)):
    for s, split in enumerate(splits):
        for c, class_name in enumerate(CLASSES):
            folder = top / split / class_name
            folder.mkdir(parents=True)
            for i in range(per_class):
                (folder / f'{class_name}_{i}.JPEG').write_bytes(jpeg((s, c, i), size))
    return top


def run(source, destination, *options):
    """The command in this process; one process of its own keeps it quick."""
    return prepare.main([str(source), str(destination), '--short-side', '32', '--jobs', '1', *options])


def start(source, destination, *options):
    """The command as a user starts it, leader of its own process group."""
    command = [sys.executable, '-m', 'lib.prepare', source, destination, '--short-side', '32', '--jobs', '2',
               *options]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def files(top):
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob('*') if path.is_file()}


def images(top):
    return {name: data for name, data in files(top).items() if name.endswith('.JPEG')}


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('imagenet'))


@pytest.fixture(scope='module')
def prepared(tree, tmp_path_factory):
    destination = tmp_path_factory.mktemp('prepared') / 'new' / 'copy'
    assert run(tree, destination) == 0
    return destination


def test_every_image_has_the_short_side_asked_for(tree, prepared):
    assert images(prepared).keys() == images(tree).keys()
    assert {Image.open(prepared / name).size for name in images(prepared)} == {(43, 32)}


def test_lists_name_every_image_with_the_place_of_its_class(prepared):
    for split in ('train', 'val'):
        expected = [f'{split}/{class_name}/{class_name}_{i}.JPEG {label}'
                    for label, class_name in enumerate(CLASSES) for i in range(3)]
        assert (prepared / f'{split}.txt').read_text().splitlines() == expected


def test_copy_is_read_alike_from_folders_and_from_lists(prepared):
    from_folders = datasets.open_pair(str(prepared / 'train'), str(prepared / 'val'))
    from_lists = datasets.open_pair(str(prepared / 'train.txt'), str(prepared / 'val.txt'), str(prepared))
    for folder, listed in zip(from_folders, from_lists):
        assert [folder.path(i) for i in range(len(folder))] == [listed.path(i) for i in range(len(listed))]
        assert folder.labels.tolist() == listed.labels.tolist()
        assert folder.n_class == listed.n_class == 3


def test_second_run_touches_nothing(tree, prepared, capfd):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob('*')}
    assert run(tree, prepared) == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob('*')} == before
    assert '18 already there' in capfd.readouterr().out


def test_number_of_processes_does_not_change_the_copy(tree, prepared, tmp_path):
    process = start(tree, tmp_path / 'copy')
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert '18 resized' in out
    assert files(tmp_path / 'copy') == files(prepared)


def test_new_images_are_added_to_an_earlier_copy(tree, prepared, tmp_path):
    source, destination = tmp_path / 'source', tmp_path / 'copy'
    shutil.copytree(tree, source)
    shutil.rmtree(source / 'train' / CLASSES[0])
    shutil.rmtree(source / 'val' / CLASSES[0])
    assert run(source, destination) == 0
    assert run(tree, destination) == 0
    assert files(destination) == files(prepared)


def test_odd_images_are_repaired_or_left_out_and_named(tmp_path, capfd):
    source = make_tree(tmp_path / 'source', splits=('train',))
    folder = source / 'train' / CLASSES[1]
    whole = jpeg(7, (300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / 'cmyk.JPEG').write_bytes(jpeg(1, (30, 20), 'CMYK'))
    (folder / 'n02105855_2933.JPEG').write_bytes(jpeg(2, (300, 200), 'RGBA', 'PNG'))
    (folder / 'turned.JPEG').write_bytes(jpeg(3, (30, 20), exif=exif))
    (folder / 'truncated.JPEG').write_bytes(whole[:len(whole) // 2])
    (folder / 'empty.JPEG').write_bytes(b'')
    (folder / 'text.JPEG').write_bytes(b'<html>')
    (folder / 'link.JPEG').symlink_to(tmp_path / 'gone')
    (folder / 'small.jpg').write_bytes(jpeg(4, (30, 20)))
    (folder / 'drawing.png').write_bytes(jpeg(5, (30, 20), kind='PNG'))

    for attempt in (1, 2):  # the second run tells again what is left out
        assert run(source, tmp_path / 'copy') == prepare.EXIT_LEFT_OUT
        out = capfd.readouterr().out
        assert [line.split('/')[-1].split(' (')[0] for line in out.splitlines() if 'left out: ' in line] == [
            'empty.JPEG', 'link.JPEG', 'text.JPEG', 'truncated.JPEG']
        if attempt == 1:
            assert [line.split('/')[-1] for line in out.splitlines() if 'repaired: ' in line] == [
                'cmyk.JPEG (CMYK)', 'n02105855_2933.JPEG (PNG, RGBA)', 'turned.JPEG (EXIF orientation 6)']
            assert '10 resized, 1 copied, 3 only converted' in out
    copy = tmp_path / 'copy' / 'train' / CLASSES[1]
    names = ['cmyk.JPEG', 'drawing.png.JPEG', *(f'{CLASSES[1]}_{i}.JPEG' for i in range(3)),
             'n02105855_2933.JPEG', 'small.jpg', 'turned.JPEG']
    assert sorted(os.listdir(copy)) == names
    listed = (tmp_path / 'copy' / 'train.txt').read_text().splitlines()
    assert listed[3:-3] == [f'train/{CLASSES[1]}/{name} 1' for name in names]
    for name in names:
        assert Image.open(copy / name).format == 'JPEG'
        assert Image.open(copy / name).mode == 'RGB'
    assert (copy / 'small.jpg').read_bytes() == (folder / 'small.jpg').read_bytes()
    assert Image.open(copy / 'turned.JPEG').size == (20, 30)


def test_set_that_is_not_split_keeps_its_form(tree, tmp_path):
    assert run(tree / 'train', tmp_path / 'copy') == 0
    lines = (tmp_path / 'copy' / 'images.txt').read_text().splitlines()
    assert lines == [f'{c}/{c}_{i}.JPEG {label}' for label, c in enumerate(CLASSES) for i in range(3)]
    copy = datasets.read_directory(str(tmp_path / 'copy'))
    assert len(copy) == 9


def test_flat_validation_images_come_into_class_folders(tree, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(tree / 'train', source / 'train')
    (source / 'val').mkdir()
    for i in range(3):
        (source / 'val' / f'ILSVRC2012_val_{i + 11:08d}.JPEG').write_bytes(jpeg(i))
    labels = tmp_path / 'labels.txt'
    lines = [f'ILSVRC2012_val_{i:08d}.JPEG {CLASSES[c]}\n' for i, c in enumerate([2, 0, 2], 11)]
    labels.write_text(''.join(lines))
    assert run(source, tmp_path / 'copy', '--val-labels', str(labels)) == 0
    assert (tmp_path / 'copy' / 'val.txt').read_text().splitlines() == [
        f'val/{CLASSES[0]}/ILSVRC2012_val_00000012.JPEG 0',
        f'val/{CLASSES[2]}/ILSVRC2012_val_00000011.JPEG 2',
        f'val/{CLASSES[2]}/ILSVRC2012_val_00000013.JPEG 2']


def test_validation_classes_that_are_not_trained_are_not_taken(tree, tmp_path, capfd):
    source = tmp_path / 'source'
    shutil.copytree(tree, source)
    shutil.rmtree(source / 'train' / CLASSES[1])
    assert run(source, tmp_path / 'copy') == 0
    expected = f'3 images are not taken, of classes without training images: {CLASSES[1]}\n'
    assert expected in capfd.readouterr().out
    assert not (tmp_path / 'copy' / 'val' / CLASSES[1]).exists()
    train, val = datasets.open_pair(str(tmp_path / 'copy' / 'train'), str(tmp_path / 'copy' / 'val'))
    assert val.labels.tolist() == train.labels.tolist() == [0, 0, 0, 1, 1, 1]


MANY = 240  # images of one content: some seconds of work


@pytest.fixture
def many(tmp_path):
    """A tree that takes long enough to be interrupted in the middle."""
    source = make_tree(tmp_path / 'source', 1, ('train',), (640, 480))
    for folder in (source / 'train').iterdir():
        for i in range(1, MANY // len(CLASSES)):
            os.link(folder / f'{folder.name}_0.JPEG', folder / f'{folder.name}_{i}.JPEG')
    return source


def wait_for(process, count, top):
    """Waits until ``count`` images are in ``top``; the run must still be going."""
    while len(list(top.glob('train/*/[!.]*.JPEG'))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize('ctrl_c', [False, True])
def test_interrupted_run_leaves_whole_files_and_is_continued(many, tmp_path, ctrl_c):
    destination = tmp_path / 'copy'
    process = start(many, destination)
    wait_for(process, 20, destination)
    if ctrl_c:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == errors.EXIT_INTERRUPTED
        assert err.splitlines()[-1] == 'prepare: interrupted; run the same command again to continue'
        assert 'Traceback' not in err
    else:
        process.kill()
        process.communicate(timeout=60)

    interrupted = images(destination)
    assert 20 <= len(interrupted) < len(images(many))
    assert not (destination / 'train.txt').exists()
    left = f'{CLASSES[0]}_0.JPEG.partial-{os.uname().nodename}-{process.pid}'
    (destination / 'train' / CLASSES[0] / left).write_bytes(b'half')
    assert run(many, destination) == 0
    assert run(many, tmp_path / 'uninterrupted') == 0
    assert files(destination) == files(tmp_path / 'uninterrupted')
    assert len(images(destination)) == len(images(many))
    assert interrupted.items() <= images(destination).items()


@pytest.mark.parametrize('ending', [signal.SIGTERM, signal.SIGHUP])
def test_run_that_is_asked_to_end_leaves_nothing_behind(many, tmp_path, ending):
    process = start(many, tmp_path / 'copy')
    wait_for(process, 3, tmp_path / 'copy')
    process.send_signal(ending)
    out, err = process.communicate(timeout=60)
    assert process.returncode == errors.EXIT_INTERRUPTED
    assert err.splitlines()[-1] == 'prepare: interrupted; run the same command again to continue'
    assert 'leaked' not in err and 'Traceback' not in err


def test_processes_end_with_a_killed_run(many, tmp_path):
    process = start(many, tmp_path / 'copy')
    wait_for(process, 3, tmp_path / 'copy')
    process.kill()
    process.communicate(timeout=60)  # the pipes close once every process of the run has ended
    assert len(images(tmp_path / 'copy')) < len(images(many))


def error_line(capfd):
    out, err = capfd.readouterr()
    assert err.endswith('\n') and err.count('\n') == 1, err
    return err


@pytest.mark.parametrize('options, words', [
    (['--quality', '0'], "--quality: '0' is not a whole number from 1 to 100"),
    (['--quality', '101'], "'101'"), (['--quality', 'high'], "'high'"), (['--short-side', '0'], "'0'"),
    (['--short-side', '1.5'], "'1.5'"), (['--jobs', '0'], "'0'"), (['--jobs', '-1'], "'-1'"),
    (['--jobs', '99999999999'], "'99999999999' is not a whole number from 1 to 1024"),
    (['--short-side', '²'], "'²' is not a whole number"),
    (['--short-side', 5000 * '9'], 'is not a whole number from 1 to 65500'),
    (['--size', '3'], 'unrecognized'), (['--val-labels'], 'expected one argument')])
def test_bad_option_ends_in_one_line(tree, tmp_path, capfd, options, words):
    assert prepare.main([str(tree), str(tmp_path / 'copy'), *options]) == 2
    assert words in error_line(capfd)
    assert not (tmp_path / 'copy').exists()


def test_missing_source_ends_in_one_line(tmp_path, capfd):
    assert run(tmp_path / 'missing', tmp_path / 'copy') == 2
    assert f'{tmp_path}/missing: no such directory' in error_line(capfd)


def test_source_without_images_ends_in_one_line(tmp_path, capfd):
    (tmp_path / 'source').mkdir()
    assert run(tmp_path / 'source', tmp_path / 'copy') == 2
    assert 'holds no images' in error_line(capfd)


@pytest.mark.parametrize('inside', ['.', 'copy', 'train/copy', '../link/copy'])
def test_destination_inside_the_source_ends_in_one_line(tmp_path, capfd, inside):
    source = make_tree(tmp_path / 'source', 1, ('train',))
    (tmp_path / 'link').symlink_to(source)
    before = files(source)
    assert run(source, source / inside) == 2
    assert 'lies inside' in error_line(capfd)
    assert files(source) == before


@pytest.mark.parametrize('absolute', [False, True])
def test_labels_write_nothing_outside_the_copy(tree, tmp_path, capfd, absolute):
    flat = tmp_path / 'flat'
    shutil.copytree(tree / 'val' / CLASSES[0], flat / 'val')
    odd = tmp_path / 'ESCAPED' if absolute else '../../ESCAPED'
    (flat / 'labels').write_text(''.join(f'{name} {odd}\n' for name in os.listdir(flat / 'val')))
    assert prepare.main([str(flat), str(tmp_path / 'copy'), '--val-labels', str(flat / 'labels')]) == 2
    assert 'cannot be the name of a class' in error_line(capfd)
    assert sorted(os.listdir(tmp_path)) == ['flat']


def test_destination_beside_the_source_with_a_longer_name_is_allowed(tmp_path):
    source = make_tree(tmp_path / 'source', 1, ('train',))
    assert run(source, tmp_path / 'source-256') == 0


def test_destination_that_cannot_be_written_ends_in_one_line(tree, tmp_path, capfd):
    (tmp_path / 'file').write_text('')
    assert run(tree, tmp_path / 'file' / 'copy') == 2
    assert 'cannot be written (Not a directory)' in capfd.readouterr().err


def test_image_that_cannot_be_written_ends_in_one_line(tree, tmp_path, capfd):
    destination = tmp_path / 'copy'
    assert run(tree, destination) == 0
    shutil.rmtree(destination / 'train')
    (destination / 'train').write_text('')
    capfd.readouterr()
    assert run(tree, destination) == 2
    assert 'cannot be written (Not a directory)' in error_line(capfd)


def test_destination_with_other_files_is_left_alone(tree, tmp_path, capfd):
    destination = make_tree(tmp_path / 'copy', 1)
    before = files(destination)
    assert run(tree, destination) == 2
    assert 'no prepare.json of an earlier run' in error_line(capfd)
    assert files(destination) == before


@pytest.mark.parametrize('options', [('--quality', '80'), ('--short-side', '40')])
def test_copy_is_not_continued_with_other_settings(tree, prepared, capfd, options):
    before = files(prepared)
    assert run(tree, prepared, *options) == 2
    assert 'prepared with --short-side 32 --quality 90' in error_line(capfd)
    assert files(prepared) == before


# What is in the copy already.

@pytest.mark.parametrize('name', ['prepare.json', 'train.txt', 'val.txt'])
def test_file_of_the_copy_that_is_no_regular_one_is_named_before_the_work(
        tree, prepared, tmp_path, capfd, special_file, name):
    copy = tmp_path / 'copy'
    copy.mkdir()
    shutil.copy(prepared / 'prepare.json', copy)
    (copy / name).unlink(missing_ok=True)
    special_file(copy / name)
    assert run(tree, copy) == 2
    assert f'{copy}/{name}: cannot be written (not a regular file)' in error_line(capfd)
    assert not (copy / 'train').exists()


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:-100]], ids=['empty', 'cut'])
def test_file_that_is_not_whole_is_made_again(tree, prepared, tmp_path, capfd, damage):
    shutil.copytree(prepared, tmp_path / 'copy')
    path = tmp_path / 'copy' / 'train' / CLASSES[1] / f'{CLASSES[1]}_2.JPEG'
    path.write_bytes(damage(path.read_bytes()))
    assert run(tree, tmp_path / 'copy') == 0
    assert '1 resized' in capfd.readouterr().out
    assert files(tmp_path / 'copy') == files(prepared)


def test_where_the_images_came_from_is_recorded(tree, prepared):
    found = json.loads((prepared / 'prepare.json').read_text())
    assert found == {'short_side': 32, 'quality': 90,
                     'sources': {'train': str(tree / 'train'), 'val': str(tree / 'val')}}


def test_other_images_of_the_same_names_end_in_one_line(prepared, tmp_path, capfd):
    other = make_tree(tmp_path / 'other')
    for path in other.rglob('*.JPEG'):
        path.write_bytes(jpeg((path.name.encode()[-6], 9)))
    before = files(prepared)
    assert run(other, prepared) == 2
    assert f'not what {other}/train makes; prepared from ' in error_line(capfd)
    assert files(prepared) == before


def test_source_may_have_moved(tree, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / 'copy')
    shutil.copytree(tree, tmp_path / 'moved')
    assert run(tmp_path / 'moved', tmp_path / 'copy') == 0


def test_images_that_the_source_does_not_have_end_in_one_line(tree, prepared, tmp_path, capfd):
    smaller = tmp_path / 'smaller'
    shutil.copytree(tree, smaller)
    shutil.rmtree(smaller / 'train' / CLASSES[2])
    (smaller / 'train' / CLASSES[0] / f'{CLASSES[0]}_1.JPEG').unlink()
    before = files(prepared)
    assert run(smaller, prepared) == 2
    assert f'{prepared}/train: holds 4 images that {smaller}/train has not' in error_line(capfd)
    assert files(prepared) == before


def test_set_that_is_not_split_does_not_join_one_that_is(tree, prepared, capfd):
    assert run(tree / 'train', prepared) == 2
    assert 'is split into train and val' in error_line(capfd)


@pytest.mark.parametrize('order', [('train', 'val'), ('val', 'train')])
def test_splits_prepared_one_by_one_have_the_labels_of_the_training_set(tmp_path, order):
    source, copy = make_tree(tmp_path / 'source'), tmp_path / 'copy'
    shutil.rmtree(source / 'val' / CLASSES[0])
    for split in order:
        (tmp_path / split).mkdir()
        (source / split).rename(tmp_path / split / split)
        assert run(tmp_path / split, copy) == 0
    assert (copy / 'val.txt').read_text().splitlines() == [
        f'val/{CLASSES[c]}/{CLASSES[c]}_{i}.JPEG {c}' for c in (1, 2) for i in range(3)]


# Names and files that are not what they seem.

def test_names_are_printed_so_that_they_show_and_the_lists_are_written(tmp_path):
    source, copy = make_tree(tmp_path / 'source', 1, ('train',)), tmp_path / 'copy'
    odd = os.fsdecode(b'\xff\xfe\x1b[31mbad.JPEG'.replace(b'\x1b', '\u202e'.encode()))
    (source / 'train' / CLASSES[0] / odd).write_bytes(b'no image')
    process = start(source, copy)
    out, err = process.communicate(timeout=120)
    assert process.returncode == prepare.EXIT_LEFT_OUT, err
    assert r'\xff\xfe\u202e[31mbad.JPEG' in out
    assert len((copy / 'train.txt').read_text().splitlines()) == 3


def test_image_of_a_name_that_is_no_text_is_prepared_and_trained_on(tmp_path):
    source, copy = make_tree(tmp_path / 'source', 1), tmp_path / 'copy'
    name = os.fsdecode(b'\xff\xfe.JPEG')
    (source / 'train' / CLASSES[0] / name).write_bytes(jpeg(3))
    assert run(source, copy) == 0
    train, _ = datasets.open_pair(str(copy / 'train.txt'), str(copy / 'val.txt'), str(copy))
    assert os.path.basename(train.path(1)) == name
    assert Image.open(train.path(1)).size == (43, 32)


def test_longest_name_is_prepared_and_one_too_long_for_its_suffix_left_out(tmp_path, capfd):
    source, copy = make_tree(tmp_path / 'source', 1, ('train',)), tmp_path / 'copy'
    folder = source / 'train' / CLASSES[0]
    (folder / ('x' * 250 + '.JPEG')).write_bytes(jpeg(1))
    (folder / ('y' * 249 + '.png')).write_bytes(jpeg(2, kind='PNG'))
    assert run(source, copy) == prepare.EXIT_LEFT_OUT
    assert 'y.png.JPEG (File name too long)' in capfd.readouterr().out
    assert (copy / 'train' / CLASSES[0] / ('x' * 250 + '.JPEG')).exists()


@pytest.mark.parametrize('packed', [False, True])
def test_image_with_a_control_character_in_its_name_is_left_out_and_named(tmp_path, capfd, packed):
    source, copy = make_tree(tmp_path / 'source', 1, ('train',)), tmp_path / 'copy'
    folder = source / 'train' / CLASSES[0]
    for character in '\n\r\x1b\x9b':
        (folder / f'odd 0{character}.JPEG').write_bytes(jpeg(1))
    if packed:
        with tarfile.open(f'{folder}.tar', 'w') as archive:
            for path in folder.iterdir():
                archive.add(path, path.name)
    for _ in range(2):
        assert run(source, copy) == prepare.EXIT_LEFT_OUT
        left_out = [line for line in capfd.readouterr().out.split('\n') if line.startswith('left out: ')]
        assert left_out == [f'left out: train/{CLASSES[0]}/odd 0{shown}.JPEG (control character in its name)'
                            for shown in (r'\n', r'\r', r'\x1b', r'\x9b')]
    assert images(copy).keys() == {f'train/{name}/{name}_0.JPEG' for name in CLASSES}
    assert len((copy / 'train.txt').read_bytes().split(b'\n')) == len(CLASSES) + 1


def test_image_of_the_copy_with_a_line_end_in_its_name_is_not_listed(tmp_path, capfd):
    source, copy = make_tree(tmp_path / 'source', 1, ('train',)), tmp_path / 'copy'
    (source / 'train' / CLASSES[0] / 'odd 0\n.JPEG').write_bytes(jpeg(1))
    assert run(source, copy) == prepare.EXIT_LEFT_OUT
    (copy / 'train' / CLASSES[0] / 'odd 0\n.JPEG').write_bytes(jpeg(1))
    capfd.readouterr()
    assert run(source, copy) == 2
    assert r'odd 0\n.JPEG; remove them' in error_line(capfd)


def test_what_is_no_regular_file_is_left_out_unopened(tmp_path, capfd):
    source, copy = make_tree(tmp_path / 'source', 1, ('train',)), tmp_path / 'copy'
    folder = source / 'train' / CLASSES[0]
    (folder / 'zero.JPEG').symlink_to('/dev/zero')
    os.mkfifo(folder / 'pipe.JPEG')
    (folder / 'folder.JPEG').mkdir()
    assert run(source, copy) == prepare.EXIT_LEFT_OUT
    out = capfd.readouterr().out
    for name in ('zero', 'pipe', 'folder'):
        assert f'{name}.JPEG (not a regular file)' in out


def test_image_beyond_the_limit_is_left_out_unread(tmp_path, capfd):
    source = make_tree(tmp_path / 'source', 1, ('train',))
    with open(source / 'train' / CLASSES[0] / 'long.JPEG', 'wb') as file:
        file.truncate(1 << 40)
    assert run(source, tmp_path / 'copy') == prepare.EXIT_LEFT_OUT
    assert f'long.JPEG ({1 << 40} bytes, more than {1 << 28})' in capfd.readouterr().out



def test_splits_of_different_sets_end_in_one_line(tmp_path, capfd):
    source = make_tree(tmp_path / 'source', 1)
    for class_name in CLASSES:
        (source / 'val' / class_name).rename(source / 'val' / f'other-{class_name}')
    assert run(source, tmp_path / 'copy') == 2
    assert 'give both splits of one set' in error_line(capfd)


def test_class_without_a_readable_image_ends_in_one_line(tmp_path, capfd):
    source = make_tree(tmp_path / 'source', 1, ('train',))
    (source / 'train' / CLASSES[1] / f'{CLASSES[1]}_0.JPEG').write_bytes(b'x')
    assert run(source, tmp_path / 'copy') == 2
    out, err = capfd.readouterr()
    assert f'left out: train/{CLASSES[1]}/{CLASSES[1]}_0.JPEG' in out
    assert f'train/{CLASSES[1]}: none of its 1 images can be read' in err.splitlines()[-1]


def test_help_tells_every_option_and_exit_status(capfd):
    with pytest.raises(SystemExit) as ended:
        prepare.main(['--help'])
    assert ended.value.code == 0
    out = capfd.readouterr().out
    for word in ('--short-side', '--quality', '--jobs', '--val-labels', 'map_clsloc.txt', 'Exit status'):
        assert word in out
