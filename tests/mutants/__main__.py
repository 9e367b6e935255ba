"""Change the code in the ways of ``mutations.py``, one at a time, and see whether its tests notice.

    python -m tests.mutants [WORD ...]     only mutations whose file or text holds one of the words

Each change is made in a copy of the tree, in which the tests named for it run until one fails. A test that
hangs has noticed, since tests have a limit: here of ``SECONDS``. What hangs outside of them has not been
noticed. Prints what survived; exit status 1 if that is 5 % or more, 2 if the list does not fit the code, or
tests fail as it is.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.mutants.mutations import EQUIVALENT, MUTATIONS

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns('.*', 'build', 'result', 'ablation-runs', '*.egg-info')
SECONDS = 120


def main(words):
    if misfits():
        print('the list does not fit the code, where each text is to stand once:', *misfits(), sep='\n  ')
        return 2
    chosen = [mutation for mutation in listed()
              if not words or any(word in ' '.join(mutation[:3]) for word in words)]
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        targets = sorted({tests for *_, tests in chosen})
        failing = [tests for tests, passed in zip(targets, threads.map(passes, targets)) if not passed]
        if failing:
            print('fail without a change:', *failing, sep='\n  ')
            return 2
        survived = 0
        for mutation, unnoticed in zip(chosen, threads.map(survives, chosen)):
            path, old, new, tests = mutation
            if unnoticed:
                survived += 1
                print(f'survived: {path}: {old!r} -> {new!r} ({tests})', flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f'{len(chosen)} mutations, {survived} survived, in {minutes:.0f} minutes; '
          f'{len(EQUIVALENT)} more change nothing that counts:')
    for path, old, new, reason in EQUIVALENT:
        print(f'  {path}: {old!r} -> {new!r}: {reason}')
    return int(survived >= 0.05 * len(chosen))


def listed():
    """Every mutation as ``(path, old, new, tests)``."""
    return [(path, *(mutation if len(mutation) > 2 else (*mutation, tests)))
            for path, tests, mutations in MUTATIONS for mutation in mutations]


def misfits():
    """What is listed and does not stand once in its file, a line each."""
    return [f'{path}: {count} times: {old!r}' for path, old, *_ in [*listed(), *EQUIVALENT]
            if (count := (ROOT / path).read_text().count(old)) != 1]


def survives(mutation):
    return passes(mutation[-1], mutation) is not False


def passes(tests, mutation=None):
    """Tell whether ``tests``, arguments of pytest, pass on a copy of the tree with ``mutation``.

    Returns:
        bool or None: None if it hangs, but in none of them.
    """
    directory = pathlib.Path(tempfile.mkdtemp(prefix='mutant-'))
    try:
        tree = directory / 'tree'
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)
        if mutation:
            path, old, new, _ = mutation
            text = (tree / path).read_text()
            (tree / path).write_text(text.replace(old, new))
        return run(tree, tests)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(tree, tests):
    # Its own group: what a hanging test has started ends with it. Its own directory for what it leaves.
    left = tree.parent / 'left'
    left.mkdir()
    pytest = subprocess.Popen(
        [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', f'--timeout={SECONDS}',
         *shlex.split(tests)], cwd=tree, env={**os.environ, 'TMPDIR': str(left)},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True)
    try:
        return pytest.wait(10 * SECONDS) == 0
    except subprocess.TimeoutExpired:
        return None
    finally:
        for number in signal.SIGTERM, signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pytest.pid, number)
            time.sleep(0.1)
        pytest.wait()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
