import gzip
import io
import tarfile

from lib.errors import UserError
from lib.prepare.source import find_images, read_image

import pytest

from tests.lib.prepare.matlab_writer import meta_mat

TENCH, SNAKE, ALP, DOG = 'n01440764', 'n01751748', 'n09193705', 'n02105855'  # in the order of val: 2, 1, 3
VAL = [f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, 5)]
VAL_CLASSES = dict(zip(VAL, [SNAKE, ALP, DOG, TENCH]))


def content(name):
    return f'bytes of {name}'.encode() * (1 + len(name) % 50)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tar_of(files, format=tarfile.GNU_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def train_files(class_name):
    return {f'{class_name}_{i}.JPEG': content(f'{class_name}_{i}.JPEG') for i in (1, 10, 2)}


def train_folders(folder, classes=(TENCH, SNAKE, DOG, ALP)):
    for class_name in classes:
        for name, data in train_files(class_name).items():
            write(folder / class_name / name, data)


def contents(split):
    return {class_name: {name: read_image(location, name) for name, location in images.items()}
            for class_name, images in split.classes.items()}


TRAIN = {class_name: train_files(class_name) for class_name in (TENCH, SNAKE, DOG, ALP)}
VALIDATION = {class_name: {name: content(name)} for name, class_name in VAL_CLASSES.items()}


@pytest.fixture
def flat(tmp_path):
    """Training folders, and validation images in one folder."""
    train_folders(tmp_path / 'train')
    for name in VAL:
        write(tmp_path / 'val' / name, content(name))
    return tmp_path


def test_class_folders_of_both_splits(tmp_path):
    train_folders(tmp_path / 'train')
    train_folders(tmp_path / 'val', [ALP])
    splits = find_images(str(tmp_path))
    assert list(splits) == ['train', 'val']
    assert contents(splits['train']) == TRAIN
    assert contents(splits['val']) == {ALP: TRAIN[ALP]}


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_as_distributed(tmp_path, format):
    tars = {f'{name}.tar': tar_of(files, format) for name, files in TRAIN.items()}
    write(tmp_path / 'ILSVRC2012_img_train.tar', tar_of(tars, format))
    write(tmp_path / 'ILSVRC2012_img_val.tar', tar_of({f'./{name}': content(name) for name in VAL}, format))
    write(tmp_path / 'val_synsets.txt', '\n'.join(VAL_CLASSES.values()).encode())
    splits = find_images(str(tmp_path))
    assert contents(splits['train']) == TRAIN
    assert contents(splits['val']) == VALIDATION


def test_folder_of_class_archives(tmp_path):
    for name, files in TRAIN.items():
        write(tmp_path / 'train' / f'{name}.tar', tar_of(files))
    assert contents(find_images(str(tmp_path))['train']) == TRAIN


def test_class_archive_wins_over_a_folder_that_it_was_half_unpacked_into(tmp_path):
    train_folders(tmp_path / 'train')
    (tmp_path / 'train' / DOG / f'{DOG}_1.JPEG').unlink()
    (tmp_path / 'train' / 'n00000001').mkdir()
    write(tmp_path / 'train' / f'{DOG}.tar', tar_of(TRAIN[DOG]))
    write(tmp_path / 'train' / 'n00000001.tar', tar_of({'x.JPEG': b'x'}))
    assert contents(find_images(str(tmp_path))['train']) == {**TRAIN, 'n00000001': {'x.JPEG': b'x'}}


def test_class_archives_beside_the_validation_archive_are_the_training_set(flat):
    for name, files in TRAIN.items():
        write(flat / f'{name}.tar', tar_of(files))
    for path in sorted((flat / 'train').rglob('*'), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    write(flat / 'test' / 'ILSVRC2012_test_00000001.JPEG', b'x')
    write(flat / 'LOC_val_solution.csv', solution())
    splits = find_images(str(flat))
    assert contents(splits['train']) == TRAIN
    assert contents(splits['val']) == VALIDATION


def test_layout_of_kaggle(tmp_path):
    top = tmp_path / 'ILSVRC' / 'Data' / 'CLS-LOC'
    train_folders(top / 'train')
    for name in VAL:
        write(top / 'val' / name, content(name))
    write(top / 'test' / 'ILSVRC2012_test_00000001.JPEG', b'x')
    write(tmp_path / 'LOC_val_solution.csv', solution())
    splits = find_images(str(tmp_path))
    assert list(splits) == ['train', 'val']
    assert contents(splits['val']) == VALIDATION


def test_class_folders_alone_are_a_set_that_is_not_split(tmp_path):
    train_folders(tmp_path)
    write(tmp_path / 'README.txt', b'not an image')
    (tmp_path / 'empty').mkdir()
    splits = find_images(str(tmp_path))
    assert list(splits) == ['']
    assert contents(splits['']) == TRAIN


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    train_folders(tmp_path / 'train')
    write(tmp_path / 'train' / DOG / '._n02105855_1.JPEG', b'x')
    write(tmp_path / 'train' / DOG / 'index.html', b'x')
    write(tmp_path / 'train' / '.cache' / 'x.JPEG', b'x')
    write(tmp_path / 'train' / f'{ALP}.tar', tar_of({'._x.JPEG': b'x', 'README': b'x', **TRAIN[ALP]}))
    assert contents(find_images(str(tmp_path))['train']) == TRAIN


# Labels of validation images.

def solution():
    rows = [f'{name[:-5]},{class_name} 85 1 499 272 {class_name} 3 3 9 9 '
            for name, class_name in VAL_CLASSES.items()]
    return '\n'.join(['ImageId,PredictionString', *rows[::-1]]).encode()


SORTED = sorted(TRAIN)
LABELS = {
    'LOC_val_solution.csv': solution(),
    'val_synsets.txt': '\r\n'.join(VAL_CLASSES.values()).encode() + b'\r\n',
    'imagenet_2012_validation_synset_labels.txt': '\n'.join(VAL_CLASSES.values()).encode(),
    'val.txt': '\n'.join(f'{name} {SORTED.index(c)}' for name, c in VAL_CLASSES.items()).encode(),
}
ID_MAP = f'{ALP} 3 alp\n{TENCH} 17 tench\n\n{SNAKE} 490 sea_snake\n{DOG} 1 Shetland_sheepdog\n'.encode()
META_MAT = meta_mat({3: ALP, 17: TENCH, 490: SNAKE, 1: DOG, 1001: 'n00001740'})
GROUND_TRUTH = b'490\n3\n1\n17\n'


def kit():
    top = 'ILSVRC2012_devkit_t12'
    return gzip.compress(tar_of({
        f'{top}/readme.txt': b'x', f'{top}/data/meta.mat': META_MAT,
        f'{top}/data/ILSVRC2012_validation_ground_truth.txt': GROUND_TRUTH}))


@pytest.mark.parametrize('name', LABELS)
@pytest.mark.parametrize('folder', ['.', 'val', 'ILSVRC2012_devkit_t12', 'devkit/data'])
def test_labels_are_found_and_read(flat, name, folder):
    write(flat / folder / name, LABELS[name])
    assert contents(find_images(str(flat))['val']) == VALIDATION


def test_ilsvrc_ids_are_read_with_the_table_of_the_kit(flat):
    data = flat / 'ILSVRC2012_devkit_t12' / 'data'
    write(data / 'ILSVRC2012_validation_ground_truth.txt', GROUND_TRUTH)
    write(data / 'meta.mat', META_MAT)
    assert contents(find_images(str(flat))['val']) == VALIDATION


def test_three_files_of_image_net_org_are_all_it_takes(tmp_path):
    tars = {f'{name}.tar': tar_of(files) for name, files in TRAIN.items()}
    write(tmp_path / 'ILSVRC2012_img_train.tar', tar_of(tars))
    write(tmp_path / 'ILSVRC2012_img_val.tar', tar_of({name: content(name) for name in VAL}))
    write(tmp_path / 'ILSVRC2012_devkit_t12.tar.gz', kit())
    splits = find_images(str(tmp_path))
    assert contents(splits['train']) == TRAIN
    assert contents(splits['val']) == VALIDATION


@pytest.mark.parametrize('data, words', [
    (b'', 'not a whole tar file'), (b'\x1f\x8b', 'not a whole tar file'),
    (gzip.compress(tar_of({'readme.txt': b'x'})), 'no ILSVRC.*_validation_ground_truth.txt'),
    (gzip.compress(tar_of({'a/ILSVRC2012_validation_ground_truth.txt': b'1'})), 'meta.mat'),
    (gzip.compress(tar_of({'a/ILSVRC2012_validation_ground_truth.txt': b'1', 'a/meta.mat': b'x'})),
     'meta.mat: not the table of classes')])
def test_kit_that_is_damaged_or_another_ends_in_one_line(flat, data, words):
    write(flat / 'ILSVRC2012_devkit_t12.tar.gz', data)
    with pytest.raises(UserError, match=words) as caught:
        find_images(str(flat))
    assert '\n' not in str(caught.value)


def test_validation_folder_may_be_called_validation(flat):
    write(flat / 'val_synsets.txt', LABELS['val_synsets.txt'])
    (flat / 'val').rename(flat / 'validation')
    assert contents(find_images(str(flat))['val']) == VALIDATION


def test_ilsvrc_ids_are_read_with_their_map(flat):
    data = flat / 'ILSVRC2012_devkit_t12' / 'data'
    write(data / 'ILSVRC2012_validation_ground_truth.txt', GROUND_TRUTH)
    write(data / 'map_clsloc.txt', ID_MAP)
    assert contents(find_images(str(flat))['val']) == VALIDATION


@pytest.mark.parametrize('text', [
    '\n'.join(f'val/{name}\t{class_name}' for name, class_name in VAL_CLASSES.items()),
    '\n'.join(f'{name[:-5]} {class_name} more' for name, class_name in VAL_CLASSES.items()),
])
def test_labels_in_any_file_can_be_given(flat, tmp_path_factory, text):
    path = tmp_path_factory.mktemp('labels') / 'mine.lst'
    path.write_text(text)
    write(flat / 'val_synsets.txt', b'wrong')
    assert contents(find_images(str(flat), str(path))['val']) == VALIDATION


def test_line_of_an_image_is_its_number_though_others_are_missing(flat):
    write(flat / 'val_synsets.txt', LABELS['val_synsets.txt'])
    (flat / 'val' / VAL[1]).unlink()
    expected = {class_name: images for class_name, images in VALIDATION.items() if class_name != ALP}
    assert contents(find_images(str(flat))['val']) == expected


def test_validation_images_that_a_script_was_still_moving_are_all_found(flat):
    write(flat / 'val_synsets.txt', LABELS['val_synsets.txt'])
    (flat / 'val' / SNAKE).mkdir()
    (flat / 'val' / VAL[0]).rename(flat / 'val' / SNAKE / VAL[0])
    assert contents(find_images(str(flat))['val']) == VALIDATION


@pytest.mark.parametrize('files, words', [
    ({}, '--val-labels'),
    ({'ILSVRC2012_validation_ground_truth.txt': GROUND_TRUTH}, 'map_clsloc.txt'),
    ({'ILSVRC2012_validation_ground_truth.txt': GROUND_TRUTH, 'map_clsloc.txt': b'n02105855 1 x'}, 'id 490'),
    ({'ILSVRC2012_validation_ground_truth.txt': GROUND_TRUTH, 'map_clsloc.txt': b'kit fox 1'}, 'kit fox 1'),
    ({'val_synsets.txt': f'{ALP}\n{SNAKE}\n{DOG}\n{TENCH}'.encode()}, SNAKE),  # another order
    ({'val_synsets.txt': f'{SNAKE}\n{ALP}\n{DOG}'.encode()}, VAL[3]),
    ({'val_synsets.txt': b'\n'}, 'no labels'),
    ({'val_synsets.txt': b'\x89PNG\xff\xfe'}, 'not a text file'),
    ({'val_synsets.txt': b'one\ntwo words\n'}, 'every line'),
    ({'val.txt': LABELS['val.txt'].replace(b' 3', b' 4')}, 'label 4'),
    ({'val.txt': LABELS['val.txt'].replace(VAL[2].encode(), b'other.JPEG')}, VAL[2]),
])
def test_labels_that_do_not_fit_end_in_one_line(flat, files, words):
    for name, data in files.items():
        write(flat / name, data)
    with pytest.raises(UserError, match=words) as caught:
        find_images(str(flat))
    assert '\n' not in str(caught.value)


def test_numbered_labels_need_numbered_images(flat):
    write(flat / 'val_synsets.txt', LABELS['val_synsets.txt'])
    (flat / 'val' / VAL[0]).rename(flat / 'val' / 'first.JPEG')
    with pytest.raises(UserError, match='not first.JPEG'):
        find_images(str(flat))


def test_labels_that_count_training_classes_need_the_training_set(flat):
    write(flat / 'val.txt', LABELS['val.txt'])
    (flat / 'train').rename(flat / 'test')
    with pytest.raises(UserError, match='training set'):
        find_images(str(flat))


# Names that would lead out of the copy, or break its list files.

ODD_CLASSES = ['../../ESCAPED', '/abs/path', '.', '..', 'a/b', 'a\\b', 'nul\0', 'bell\a', 'delete\x7f']


@pytest.mark.parametrize('odd', ODD_CLASSES)
@pytest.mark.parametrize('name', ['LOC_val_solution.csv', 'val_synsets.txt'])
def test_class_of_a_table_that_cannot_be_a_folder_is_named(flat, name, odd):
    write(flat / name, LABELS[name].replace(SNAKE.encode(), odd.encode()))
    with pytest.raises(UserError, match='cannot be the name of a class') as caught:
        find_images(str(flat))
    assert f'{name}: {odd!r}' in str(caught.value) and '\n' not in str(caught.value)


def test_class_of_a_map_of_ids_that_cannot_be_a_folder_is_named(flat):
    write(flat / 'ILSVRC2012_validation_ground_truth.txt', GROUND_TRUTH)
    write(flat / 'map_clsloc.txt', ID_MAP.replace(ALP.encode(), b'../' + ALP.encode()))
    with pytest.raises(UserError, match=f"'../{ALP}' cannot be the name of a class"):
        find_images(str(flat))


@pytest.mark.parametrize('split', ['train', 'val', '.'])
def test_class_folder_with_a_line_end_in_its_name_is_named(tmp_path, split):
    write(tmp_path / split / 'x 1\n..' / 'a.JPEG', content('a.JPEG'))
    with pytest.raises(UserError, match=r"'x 1\\n\.\.' cannot be the name of a class") as caught:
        find_images(str(tmp_path))
    assert '\n' not in str(caught.value)


# What is missing or damaged.

def test_class_archive_that_is_no_regular_file_is_named(tmp_path, special_file):
    train_folders(tmp_path / 'train')
    special_file(tmp_path / 'train' / 'n00000001.tar')
    with pytest.raises(UserError, match=r'train/n00000001\.tar: cannot be read .not a regular file'):
        find_images(str(tmp_path))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_archive_that_is_no_regular_file_is_not_taken_for_none(flat, special_file, split):
    (flat / split).rename(flat / 'elsewhere')
    special_file(flat / f'ILSVRC2012_img_{split}.tar')
    with pytest.raises(UserError, match=fr'img_{split}\.tar: cannot be read .not a regular file'):
        find_images(str(flat))


def test_archive_on_a_disk_that_is_not_there_is_named(flat):
    (flat / 'train').rename(flat / 'elsewhere')
    (flat / 'ILSVRC2012_img_train.tar').symlink_to(flat / 'gone')
    with pytest.raises(UserError, match=r'img_train\.tar: cannot be read .No such file'):
        find_images(str(flat))


@pytest.mark.parametrize('source, words', [('missing', 'no such directory'), ('file', 'not a directory'),
                                           ('empty', 'no images'), ('flat', '2 images in no class folder')])
def test_source_without_classes_ends_in_one_line(tmp_path, source, words):
    write(tmp_path / 'file', b'x')
    (tmp_path / 'empty').mkdir()
    for name in ('1.JPEG', '2.JPEG'):
        write(tmp_path / 'flat' / name, b'x')
    with pytest.raises(UserError, match=words):
        find_images(str(tmp_path / source))


def test_class_folder_without_images_is_named(tmp_path):
    train_folders(tmp_path / 'train')
    write(tmp_path / 'train' / 'n00000001' / 'images' / '1.JPEG', b'x')
    with pytest.raises(UserError, match='n00000001: class folder without images'):
        find_images(str(tmp_path))


def test_training_image_in_no_class_folder_is_named(tmp_path):
    train_folders(tmp_path / 'train')
    write(tmp_path / 'train' / 'stray.JPEG', b'x')
    with pytest.raises(UserError, match='stray.JPEG'):
        find_images(str(tmp_path))


@pytest.mark.parametrize('lost', [1, 512, 1024, 3000, 11000])
@pytest.mark.parametrize('nested', [False, True])
def test_archive_that_breaks_off_is_not_taken_for_whole(tmp_path, lost, nested):
    data = tar_of({f'{i}.JPEG': bytes(700) for i in range(12)})
    shortest = 12 * (512 + 1024) + 512  # headers, data in blocks of 512, and an empty block at the end
    if nested:
        write(tmp_path / 'ILSVRC2012_img_train.tar', tar_of({f'{TENCH}.tar': data[:shortest - lost]}))
    else:
        write(tmp_path / 'train' / f'{TENCH}.tar', data[:shortest - lost])
    with pytest.raises(UserError, match='not a whole, uncompressed tar file'):
        find_images(str(tmp_path))


def test_shortest_whole_archive_is_read(tmp_path):
    data = tar_of({f'{i}.JPEG': bytes(700) for i in range(12)})
    write(tmp_path / 'train' / f'{TENCH}.tar', data[:12 * (512 + 1024) + 512])
    assert len(find_images(str(tmp_path))['train'].classes[TENCH]) == 12


@pytest.mark.parametrize('data', [b'', b'<html>', b'\x1f\x8b' + bytes(600), tar_of({'README': b'x'})])
def test_what_is_no_archive_of_images_ends_in_one_line(tmp_path, data):
    write(tmp_path / 'ILSVRC2012_img_train.tar', data)
    with pytest.raises(UserError, match='ILSVRC2012_img_train.tar: ') as caught:
        find_images(str(tmp_path))
    assert '\n' not in str(caught.value)
