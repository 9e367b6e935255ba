"""What ``soak.py`` tries besides kills, each drawn from a seed: damaged checkpoints, odd images, hostile
archives, full disks and requests to stop. A trial returns what went wrong, or nothing.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time

from lib.checkpoint import file
from lib.data.decoding import load_training, load_validation
from lib.errors import BadImage

import numpy as np
from PIL import Image

from jobs.faults import injection, observation

SECONDS = 20  # that reading a file may take

NAMES = (b'plain.JPEG', b'\xff\xfebytes.JPEG', b'two\nlines.JPEG', b'\x1b[2Jescape.JPEG',
         b'n' * 248 + b'.JPEG', b'-o.JPEG', 'größer 画像.JPEG'.encode(), b'a b.JPEG',
         '\u202egnp.JPEG'.encode())


class _Hang(BaseException):
    """Something took too long."""


@contextlib.contextmanager
def _time_limit(seconds):
    def give_up(number, frame):
        raise _Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _spoilt(bits, content):
    """Bytes with a few changed, some missing or some more."""
    content = bytearray(content)
    kind = bits.choice(['flip', 'cut', 'zero', 'insert', 'none'])
    place = bits.randrange(len(content))
    if kind == 'flip':
        for _ in range(bits.randint(1, 20)):
            content[bits.randrange(len(content))] ^= 1 << bits.randrange(8)
    elif kind == 'cut':
        del content[place:place + bits.choice([1, 100, len(content)])]
    elif kind == 'zero':
        length = min(bits.choice([1, 512, 4096]), len(content) - place)
        content[place:place + length] = bytes(length)
    elif kind == 'insert':
        content[place:place] = bits.randbytes(bits.choice([1, 512]))
    return bytes(content)


# Checkpoints

def damaged_checkpoint(bits, folder):
    """A checkpoint with spoilt bytes, or with a description that no run has written and a right checksum."""
    path = folder / 'iteration-00000007.npz'
    arrays = {'model/W': np.arange(bits.randint(1, 1000), dtype=np.float32), 'log/sums': np.zeros((1, 3))}
    described = {'job': {'iterations': 9}, 'iteration': 7, 'log': [{'epoch': 1, 'iteration': 7}],
                 'elapsed_time': 1.5}
    forged = bits.random() < 0.3
    if forged:
        key = bits.choice([*described])
        described[key] = bits.choice([None, 'text', [[]], {}, -1, 10 ** 12, True, float('nan')])
        if bits.random() < 0.3:
            del described[key]
    file.write(path, arrays, described)
    if not forged:
        path.write_bytes(_spoilt(bits, path.read_bytes()))
    try:
        with _time_limit(SECONDS):
            read, description = file.read(path)
    except file.DamagedCheckpoint as error:
        return '' if str(error).isprintable() else f'not printable: {str(error)!r}'
    except (Exception, _Hang) as error:
        return f'{type(error).__name__}: {error}'
    if forged:
        plausible = (isinstance(description.get('job'), dict) and type(description.get('iteration')) is int
                     and description['iteration'] <= description['job'].get('iterations', 9)
                     and isinstance(description.get('log'), list))
        return '' if plausible else f'taken for whole: {description}'
    same = description == described and all(read[name].tobytes() == arrays[name].tobytes() for name in arrays)
    return '' if same else 'damage that was not found'


# Images

def odd_image(bits, folder):
    """An image of any format and mode, whole or spoilt, or a file that is none, under any name."""
    path = os.path.join(os.fsencode(folder), bits.choice(NAMES))
    kind = bits.choice(['image'] * 6 + ['pipe', 'folder', 'endless', 'large', 'missing', 'empty'])
    if kind == 'image':
        with open(path, 'wb') as out:
            out.write(_spoilt(bits, _image(bits)))
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        os.mkdir(path)
    elif kind == 'endless':
        os.symlink('/dev/zero', path)
    elif kind in ('large', 'empty'):
        with open(path, 'wb') as out:
            out.truncate(1 << 35 if kind == 'large' else 0)
    name = os.fsdecode(path)
    try:
        with _time_limit(SECONDS):
            loaded = [load_validation(name, 32), load_training(name, 32, 0, 0, bits.randrange(1000))]
    except BadImage as error:
        return '' if str(error).isprintable() else f'{kind}: not printable: {str(error)!r}'
    except (Exception, _Hang) as error:
        return f'{kind}: {type(error).__name__}: {error}'
    fine = kind == 'image' and all(pixels.shape == (32, 32, 3) for pixels in loaded)
    return '' if fine else f'{kind}: taken for an image'


def _image(bits):
    mode = bits.choice(['RGB', 'L', 'P', 'CMYK', 'RGBA', '1', 'I;16'])
    form = bits.choice(['JPEG', 'JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'EPS', 'PPM', 'ICO'])
    size = bits.choice([(1, 1), (64, 48), (3, 200), (500, 375)])
    image, out = Image.new(mode, size), io.BytesIO()
    try:
        image.save(out, form)
    except (OSError, ValueError, KeyError):  # that format lacks this mode
        out = io.BytesIO()
        image.convert('RGB').save(out, form)
    return out.getvalue()


# Archives

def hostile_archive(bits, folder):
    """A class's tar file with members that mean harm, for ``lib.prepare``."""
    source, copy = folder / 'source', folder / 'copy'
    for split in ('train', 'val'):
        (source / split).mkdir(parents=True)
        content = io.BytesIO()
        form = bits.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        with tarfile.open(fileobj=content, mode='w', format=form, errors='surrogateescape') as tar:
            for number in range(bits.randint(1, 6)):
                _add_member(bits, tar, number)
        data = content.getvalue()
        if bits.random() < 0.4:
            data = _spoilt(bits, data)
        (source / split / 'n00000001.tar').write_bytes(data)
    if bits.random() < 0.3:
        (source / 'train' / 'n00000002').mkdir()
        (source / 'train' / 'n00000002' / 'z.JPEG').symlink_to('/dev/zero')
    command = [sys.executable, '-m', 'lib.prepare', str(source), str(copy), '--jobs', '1']
    try:
        done = subprocess.run(command, cwd=injection.ROOT, capture_output=True, timeout=120,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return 'lib.prepare hangs'
    text = (done.stdout + done.stderr).decode('utf-8', 'surrogateescape')
    raw = [character for character in set(text) if not character.isprintable() and character not in '\n\r']
    if 'Traceback' in text or raw or done.returncode not in (0, 1, 2):
        return f'lib.prepare: status {done.returncode}: {text[-1500:]!r}'
    return ''


def _add_member(bits, tar, number):
    member = tarfile.TarInfo(f'{number}-{os.fsdecode(bits.choice(NAMES))}')
    kind = bits.choice(['image'] * 3 + ['above', 'link', 'hard link', 'device', 'pipe', 'huge', 'deep'])
    content = _spoilt(bits, _image(bits)) if kind == 'image' else b''
    member.size = len(content)
    if kind == 'above':
        member.name = '../../' + member.name
    elif kind in ('link', 'hard link'):
        member.type = tarfile.SYMTYPE if kind == 'link' else tarfile.LNKTYPE
        member.linkname = '/dev/zero'
    elif kind in ('device', 'pipe'):
        member.type = tarfile.CHRTYPE if kind == 'device' else tarfile.FIFOTYPE
    elif kind == 'huge':
        member.size = 1 << 40
        tar.fileobj.write(member.tobuf(tar.format, tar.encoding, tar.errors))
        tar.offset = tar.fileobj.tell()
        return
    elif kind == 'deep':
        member.name = 'd/' * bits.choice([100, 3000]) + member.name
    tar.addfile(member, io.BytesIO(content))


# Runs

class Runs:
    """Trials of whole runs, which in the end have to be the bytes of one that nothing happened to.

    Args:
        folder (pathlib.Path): Of the run that nothing happens to.
        options (list of str): Of the program, without ``--out``; iterations fill some seconds.
    """

    def __init__(self, folder, options):
        self._reference = folder / 'reference'
        self._options = [*map(str, options), '--checkpoint-interval', '1', '--resume', 'auto', '--out']
        self._finish(self._reference)
        # Its checkpoints are counted in iterations.
        self._iterations = observation.state(self._reference)[1]

    def _start(self, out, *faults):
        return injection.start(2, {'options': [*self._options, str(out)], 'faults': faults})

    def _finish(self, out):
        job = self._start(out)
        text = job.communicate()
        return '' if job.returncode == 0 else f'not finished, status {job.returncode}: {text}'

    def _compared(self, out):
        found = observation.differences(out, self._reference)
        left = [str(path) for path in out.rglob('*.partial-*')]
        return ', '.join(found + left)

    def full_disk(self, bits, folder):
        """No file grows on rank 0 for some iterations."""
        first = bits.randint(1, self._iterations - 2)
        job = self._start(folder / 'out', ['full_disk', 0, first],
                          ['free_disk', 0, bits.randint(first + 1, self._iterations)])
        out, err = job.communicate()
        if job.returncode or 'Traceback' in err:
            return f'status {job.returncode}: {err[-1500:]}'
        return self._compared(folder / 'out')

    def request_to_stop(self, bits, folder):
        """A signal, or two, to one rank or to mpirun at any moment; then the run is continued to its end."""
        job = self._start(folder / 'out')
        time.sleep(bits.uniform(0, 6))
        victims = [bits.choice(observation.processes_of(job) or [job.pid])]
        number = bits.choice([signal.SIGTERM, signal.SIGUSR1])
        if number == signal.SIGUSR1 and bits.random() < 0.5:
            victims = [job.pid]
        for _ in range(bits.choice([1, 1, 2])):
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, number)
            time.sleep(0.3)
        try:
            out, err = job.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            observation.kill(job, 'all', bits)
            return f'{signal.Signals(number).name}: still there after 60 s: {job.communicate()[1][-1500:]}'
        if not observation.wait_for(lambda: not observation.processes_of(job), 10):
            return 'processes are left'
        # Before a handler is there the signal kills, a rank or mpirun, as under any program; a decoder takes
        # none.
        if job.returncode not in (0, 75, 128 + number, number, -number):
            return f'{signal.Signals(number).name}: status {job.returncode}: {err[-1500:]}'
        return self._finish(folder / 'out') or self._compared(folder / 'out')
