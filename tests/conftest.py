"""Fixtures for tests that need several ranks: they start mpirun themselves, so that plain pytest runs all."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import stat
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib import compiled  # noqa: E402  (before anything imports NumPy or Chainer)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

# Started in the background, by nohup or by a shell with traps, pytest and all that it starts ignore signals
# that tests send. What has a handler here has the default in a new process.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and say why."""
    on_gpu = [item for item in items if item.get_closest_marker('gpu')]
    if on_gpu:
        from lib.run import devices
        missing = devices.missing_for_gpus()
        for item in on_gpu if missing else ():
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope='session', autouse=True)
def _mpirun_s_directory(tmp_path_factory):
    """A directory of this session's own for mpirun.

    There it makes one named by its process number, and does not start where a killed one left its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PRTE_MCA_prte_tmpdir_base', str(tmp_path_factory.mktemp('mpirun')))
        yield


def _rank_environment():
    """The environment of a launch on one small machine, the same however many cores it has."""
    environment = dict(os.environ)
    environment.update(
        OMPI_ALLOW_RUN_AS_ROOT='1',
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1',
        OPENBLAS_NUM_THREADS='1',
        OMP_NUM_THREADS='1',
        PYTHONPATH=str(ROOT),
    )
    return environment


def _mpirun_command():
    """``mpirun`` beside this Python (the wheel), else the one on the path."""
    beside = pathlib.Path(sys.executable).parent / 'mpirun'
    command = str(beside) if beside.exists() else shutil.which('mpirun')
    if command is None:
        pytest.fail('no mpirun: install the extra "mpi" (make test does), or load your MPI')
    return [command, '--oversubscribe']


@pytest.fixture(scope='session')
def mpirun():
    """``mpirun(n, *args)`` runs ``python *args`` on ``n`` ranks and returns the CompletedProcess."""

    def run(n, *args, check=True, timeout=120, cwd=ROOT, env=None):
        command = [*_mpirun_command(), '-np', str(n), sys.executable, *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env={**_rank_environment(), **(env or {})}, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f'{" ".join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}')
        return done

    return run


@pytest.fixture(scope='session')
def assert_on_ranks(mpirun):
    """``assert_on_ranks(script, ranks, case)``: a case of a script passes; all its cases are run once."""
    runs = {}

    def check(script, ranks, case):
        if (script, ranks) not in runs:
            runs[script, ranks] = mpirun(ranks, script, check=False)
        done = runs[script, ranks]
        assert case in done.stdout.split(), done.stdout + done.stderr

    return check


@pytest.fixture
def full_disk():
    """A block in which no file grows beyond a size: Python ignores the kernel's signal and sees EFBIG."""
    @contextlib.contextmanager
    def full_disk(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return full_disk


@pytest.fixture(params=['named pipe', 'socket', 'device'])
def special_file(request):
    """``special_file(path)``: make what is no regular file; to open it waits, fails, or gives no bytes."""
    return {'named pipe': os.mkfifo,
            'socket': lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
            'device': lambda path: os.symlink('/dev/null', path)}[request.param]


@pytest.fixture(params=['compiled', 'NumPy'])
def both_implementations(request, monkeypatch):
    """``both_implementations(module)`` makes ``module`` use compiled loops in one test, NumPy in the next."""

    def choose(module):
        if request.param == 'NumPy':
            monkeypatch.setattr(module, 'loops', None)
        elif module.loops is None:
            pytest.skip('lib/compiled/loops.c was not compiled when this was installed')

    return choose


@pytest.fixture(params=compiled.available())
def vectors(request, monkeypatch):
    """One test for each width of vectors that the networks' layers can compute with here; its name."""
    monkeypatch.setenv(compiled.VARIABLE, request.param)
    compiled.vectors.cache_clear()
    yield request.param
    compiled.vectors.cache_clear()


def draw_images(folder, classes, per_class, size=(20, 18), seed=0):
    """A small data set in the ImageNet layout: noise around a color of its class."""
    bits = np.random.RandomState(seed)
    for label, name in enumerate(classes):
        directory = folder / name
        directory.mkdir(parents=True)
        color = np.array([37 * label % 256, 101 * label % 256, 173 * label % 256])
        for i in range(per_class):
            pixels = np.clip(color + bits.normal(0, 40, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / f'{name}_{i}.JPEG', quality=90)


@pytest.fixture(scope='session')
def small_data(tmp_path_factory):
    """Training folder with 75 images of 3 classes, validation folder with 21."""
    root = tmp_path_factory.mktemp('images')
    classes = ('ant', 'bee', 'cat')
    draw_images(root / 'train', classes, 25, seed=1)
    draw_images(root / 'val', classes, 7, seed=2)
    return root / 'train', root / 'val'


@pytest.fixture(scope='session')
def train_into(mpirun, small_data):
    """``train_into(out, n, *options)`` runs the program on ``n`` ranks on ``small_data``, at 16 pixels."""

    def run(out, n, *options, data=small_data, **kwargs):
        return mpirun(n, 'train_imagenet.py', *data, '--arch', 'resnet8', '--insize', '16', '-j', '0',
                      '-o', out, *options, **kwargs)

    return run


@pytest.fixture
def train(train_into, tmp_path):
    """``train(n, *options)`` likewise, into ``tmp_path / 'out'``."""
    return lambda n, *options, **kwargs: train_into(tmp_path / 'out', n, *options, **kwargs)
