"""Prepares ImageNet for training: short side 256, sound JPEG files only, in class folders, with list files.

``python -m lib.prepare SRC DST`` reads ImageNet in any form that :mod:`lib.prepare.source` knows, makes
each image ready with :mod:`lib.prepare.image`, and writes ``DST/train/<class>/`` and ``DST/val/<class>/``
with the list files ``DST/train.txt`` and ``DST/val.txt``; ``--help`` says the rest.

What it costs and saves, on 200 photographs of ImageNet (most of quality 96, full chroma): 110 KB become 29
KB at quality 90, so that the training set takes some 37 GB and stays in a node's memory. Of the images that
are resized, quality 90 (with Pillow's 4:2:0 chroma) makes 30 KB that lie 36 dB from the resized pixels; 85
makes 24 KB and 35 dB, 95 makes 42 KB and 38 dB; a bilinear filter in place of the bicubic one makes 41 dB.
What that costs in accuracy has not been measured here. It also departs from the papers, whose random crops,
down to 8 % of the area, came from the full photographs: crops of a prepared image are enlarged more often.
"""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from multiprocessing import forkserver, resource_tracker

from lib import constants, files
from lib.errors import UserError
from lib.prepare import progress
from lib.prepare.image import JPEG_SUFFIXES, QUALITY, UnreadableImage, prepare_image, prepared_name
from lib.prepare.source import can_be_listed, find_images, read_image

SETTINGS_FILE = 'prepare.json'
# List file of each split; a set that is not split has the empty name.
LIST_FILES = {'train': 'train.txt', 'val': 'val.txt', '': 'images.txt'}

_CHUNK = 8              # images a process takes at a time: some 30 ms, so that Ctrl-C ends quickly
_CHUNKS_IN_FLIGHT = 4   # per process
_END_OF_JPEG = b'\xff\xd9'
_COMPARED = 8           # images of a copy that are made again when its source has another path


def prepare(source, destination, short_side=constants.VAL_SHORT_SIDE, quality=QUALITY, jobs=1,
            val_labels=None):
    """Prepare the images below ``source`` in ``destination``; finished files there are left as they are.

    Args:
        source (str): Directory that :func:`lib.prepare.source.find_images` reads.
        destination (str): Directory, made if missing; empty, or prepared before with the same settings.
        short_side (int): See :func:`lib.prepare.image.prepare_image`.
        quality (int): JPEG quality, as above.
        jobs (int): Number of processes.
        val_labels (str or None): See :func:`lib.prepare.source.find_images`.

    Returns:
        list of tuple: ``(path below destination, reason)`` of the images that could not be read, which the
        list files therefore leave out.

    Raises:
        UserError: If something is wrong that the user can mend.
    """
    started = time.monotonic()
    inside = os.path.realpath(destination) + os.sep
    if inside.startswith(os.path.realpath(source) + os.sep):
        raise UserError(f'{destination}: lies inside {source}, whose images it would join; give a directory '
                        'elsewhere')
    splits = find_images(source, val_labels)
    settings = {'short_side': short_side, 'quality': quality}
    recorded = _claim(destination, settings)
    classes, origin = _trained(splits, destination)
    if 'val' in splits and origin != splits['val'].origin:
        _leave_out_untrained(classes, origin, splits['val'])
    there = {name: _finished(os.path.join(destination, name), split) for name, split in splits.items()}
    sources = {name: os.path.realpath(split.origin) for name, split in splits.items()}
    _check_source(destination, splits, there, settings, recorded, sources)
    _write_text(os.path.join(destination, SETTINGS_FILE),
                json.dumps({**settings, 'sources': {**recorded, **sources}}) + '\n')
    total = 0
    for name, split in splits.items():
        count = sum(map(len, split.classes.values()))
        total += count
        progress.tell(f'{name or "images"}: {count} images of {len(split.classes)} classes in {split.origin}')

    tally, repaired, left_out = Counter(), [], []
    work = _unfinished(splits, there, tally)
    chunks = iter(lambda: list(itertools.islice(work, _CHUNK)), [])
    first = next(chunks, None)
    if first is not None:  # else there is no work, and no process is started
        shown = progress.Progress(total)
        chunks = itertools.chain([first], chunks)
        with contextlib.closing(_in_processes(jobs, chunks, destination, short_side, quality)) as results:
            for counts, repaired_here, left_out_here in results:
                tally.update(counts)
                repaired += repaired_here
                left_out += left_out_here
                shown.show(tally['done'], tally['there'])
        shown.close()
    progress.report(tally, sorted(repaired), sorted(left_out), time.monotonic() - started)
    _write_lists(splits, classes, destination, {path for path, _ in left_out})
    return left_out


def _trained(splits, destination):
    """``(classes in the order of their labels, where they come from)``.

    The training set decides, of this run or of an earlier one; without any, the images that there are.
    """
    list_file = os.path.join(destination, LIST_FILES['train'])
    if 'train' not in splits and 'val' in splits and os.path.isfile(list_file):
        classes = {class_name for class_name, _ in _listed(list_file)}
    else:
        split = splits.get('train') or splits.get('') or splits['val']
        classes, list_file = split.classes, split.origin
    return sorted(classes, key=os.fsencode), list_file


def _listed(path):
    """``(class, path below destination)`` of each line of a list file that an earlier run has written."""
    with open(path, 'rb') as file:
        paths = [os.fsdecode(line.rsplit(b' ', 1)[0]) for line in file]
    return [(image.split('/')[-2], image) for image in paths]


def _leave_out_untrained(classes, origin, val):
    """Take validation images of classes that are not trained out: they have no label."""
    untrained = sorted(set(val.classes) - set(classes))
    if len(untrained) == len(val.classes):
        raise UserError(f'{val.origin}: none of its classes (such as {untrained[0]}) is in {origin} '
                        f'(such as {classes[0]}); give both splits of one set')
    if untrained:
        count = sum(len(val.classes.pop(class_name)) for class_name in untrained)
        progress.tell(f'val: {count} images are not taken, of classes without training images: '
               + ', '.join(untrained[:5]) + (', ...' if len(untrained) > 5 else ''))


def _claim(destination, settings):
    """Make ``destination``, or check that it was prepared with the same settings.

    Returns:
        dict: Path of the source of each split that an earlier run has prepared here.
    """
    path = os.path.join(destination, SETTINGS_FILE)
    try:
        os.makedirs(destination, exist_ok=True)
        for name in LIST_FILES.values():  # before the work; they are compared and written after it
            _holds(os.path.join(destination, name), b'')
        if os.path.exists(path):
            with files.open_regular(path) as file:
                found = dict(json.load(file))
            sources = {name: str(origin) for name, origin in dict(found.pop('sources', {})).items()}
            if found != settings:
                raise UserError(f'{destination}: prepared with {_options(found)}, not {_options(settings)}; '
                                'give the same settings or another directory')
            return sources
        if os.listdir(destination):
            raise UserError(f'{destination}: holds files, and no {SETTINGS_FILE} of an earlier run; give an '
                            'empty or a new directory')
        return {}
    except OSError as error:
        raise _unwritable(error.filename or destination, error) from None
    except (ValueError, TypeError):
        raise UserError(f'{path}: not what a run of this program writes; give an empty or a new '
                        'directory') from None


def _options(settings):
    return ' '.join(f'--{name.replace("_", "-")} {value}' for name, value in settings.items())


def _finished(folder, split):
    """Names of the whole images in the folder of a split, by class; files that were cut are not among them.

    Raises:
        UserError: If it holds images that the split has not: they would be trained on.
    """
    found, foreign = {}, []
    try:
        with os.scandir(folder) as entries:
            folders = [entry.name for entry in entries if entry.is_dir()]
        for class_name in folders:
            path = os.path.join(folder, class_name)
            files.remove_leftovers(path, of_living=True)  # a killed run's processes may still be ending
            names = {name for name in os.listdir(path) if name.lower().endswith(JPEG_SUFFIXES)}
            wanted = set(map(prepared_name, filter(can_be_listed, split.classes.get(class_name, ()))))
            foreign += [os.path.join(path, name) for name in names - wanted]
            found[class_name] = {name for name in names & wanted if _is_whole(os.path.join(path, name))}
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(folder, error) from None
    if foreign:
        raise UserError(f'{folder}: holds {len(foreign)} images that {split.origin} has not, such as '
                        f'{min(foreign)}; remove them, give the source that they come from, or give another '
                        'directory')
    return found


def _is_whole(path):
    """Tell whether a JPEG file has its end; a link to nothing has none."""
    try:
        with files.open_regular(path) as file:
            end = max(os.fstat(file.fileno()).st_size - len(_END_OF_JPEG), 0)
            return os.pread(file.fileno(), len(_END_OF_JPEG), end) == _END_OF_JPEG
    except FileNotFoundError:
        return False


def _check_source(destination, splits, there, settings, recorded, sources):
    """Check that what is there came from these images: under another path, some are made again to compare.

    Raises:
        UserError: If an image of the copy is not what this source makes.
    """
    if recorded and ('' in recorded) != ('' in sources):
        raise UserError(f'{destination}: prepared from {", ".join(recorded.values())}, of which one is split '
                        'into train and val and the other is not; give another directory')
    for split_name, split in splits.items():
        if recorded.get(split_name) == sources[split_name]:
            continue
        known = [(class_name, name) for class_name, images in split.classes.items() for name in images
                 if prepared_name(name) in there[split_name].get(class_name, ())]
        for class_name, name in known[::-(-len(known) // _COMPARED) or 1]:
            path = os.path.join(destination, split_name, class_name, prepared_name(name))
            try:
                data, *_ = prepare_image(read_image(split.classes[class_name][name], name), **settings)
            except (UnreadableImage, OSError):
                continue
            if not _holds(path, data):
                raise UserError(f'{path}: not what {split.origin} makes; prepared from '
                                f'{recorded.get(split_name, "another source")}, or by another Pillow: give '
                                'that source, or another directory')


def _unfinished(splits, there, tally):
    """Yield (path below destination, file name, location) of what is still to do; counts what is there."""
    for split_name, split in splits.items():
        for class_name in sorted(split.classes, key=os.fsencode):
            finished = there[split_name].get(class_name, ())
            for name, location in sorted(split.classes[class_name].items()):
                if prepared_name(name) in finished:
                    tally['there'] += 1
                else:
                    yield os.path.join(split_name, class_name, prepared_name(name)), name, location


def _in_processes(jobs, chunks, *settings):
    """Yield the results of :func:`_prepare_chunk` in the order in which they are finished."""
    # forkserver: neither a fork of a process with threads nor a copy of the image list in every process.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['lib.prepare.source', 'lib.prepare.image'])
    # Ctrl-C reaches every process of the terminal. The new ones inherit that it is blocked; this one notes it
    # and tells them to end, since an exception while they start would leave them without their queues.
    interrupted = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    resource_tracker.ensure_running()  # would unblock it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    executor = concurrent.futures.ProcessPoolExecutor(jobs, context, _end_with_parent)
    pending = set()
    try:
        while True:
            for chunk in itertools.islice(chunks, _CHUNKS_IN_FLIGHT * jobs - len(pending)):
                pending.add(executor.submit(_prepare_chunk, chunk, *settings))
            if not pending:
                break
            done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            if interrupted:
                raise KeyboardInterrupt
            yield from (future.result() for future in done)
    except (concurrent.futures.process.BrokenProcessPool, MemoryError):
        raise UserError('a process ended unexpectedly, perhaps for lack of memory; run the same command '
                        'again to continue, with fewer --jobs') from None
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGINT, handler)


def _end_with_parent():
    """Make this process end when the one that gives it work is killed; else it would wait forever."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _prepare_chunk(chunk, destination, short_side, quality):
    counts, repaired_here, left_out_here = Counter(), [], []
    counts['done'] = len(chunk)
    for path, name, location in chunk:
        try:
            data = read_image(location, name)
            prepared, resized, repaired = prepare_image(data, short_side, quality)
            target = os.path.join(destination, path)
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                _write(target, prepared)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise  # of this image alone
                raise _unwritable(target, error) from None
        except (UnreadableImage, OSError) as error:
            counts['left out'] += 1
            left_out_here.append((path, getattr(error, 'strerror', None) or str(error)))
            continue
        counts['resized' if resized else 'converted' if repaired else 'copied'] += 1
        counts['bytes read'] += len(data)
        counts['bytes written'] += len(prepared)
        # A file that does not call itself JPEG is no surprise.
        if repaired and prepared_name(name) == name:
            repaired_here.append((path, repaired))
    return counts, repaired_here, left_out_here


def _write(path, data):
    with files.replacing(path) as file:
        file.write(data)


def _write_lists(splits, trained, destination, left_out):
    """Write the list files, unless they hold the same already: (path below destination, label) per line."""
    label_of = {class_name: label for label, class_name in enumerate(trained)}
    for split_name, split in splits.items():
        lines = []
        for class_name in sorted(split.classes, key=os.fsencode):
            names = sorted(map(prepared_name, split.classes[class_name]), key=os.fsencode)
            paths = [path for path in (os.path.join(split_name, class_name, file) for file in names)
                     if path not in left_out]
            if not paths:
                raise UserError(f'{os.path.join(split_name, class_name)}: none of its {len(names)} images '
                                f'can be read; mend them or take the class out of {split.origin}')
            lines += [f'{path} {label_of[class_name]}\n' for path in paths]
        _write_text(os.path.join(destination, LIST_FILES[split_name]), ''.join(lines))
    # A validation set that was prepared before its training set has that one's labels from now on.
    val = os.path.join(destination, LIST_FILES['val'])
    if 'train' in splits and 'val' not in splits and os.path.isfile(val):
        _write_text(val, ''.join(f'{image} {label_of[class_name]}\n' for class_name, image in _listed(val)
                                 if class_name in label_of))


def _write_text(path, text):
    data = os.fsencode(text)
    try:
        if not _holds(path, data):
            _write(path, data)
    except OSError as error:
        raise _unwritable(path, error) from None


def _holds(path, data):
    with contextlib.suppress(FileNotFoundError), files.open_regular(path) as file:
        return file.read(len(data) + 1) == data
    return False


def _unwritable(path, error):
    return UserError(f'{path}: cannot be written ({error.strerror}); make room or give another directory, '
                     'and run the same command again to continue')
