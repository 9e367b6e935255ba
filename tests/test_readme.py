"""The manual is true: its commands exist and run, its paths lead somewhere."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / 'README.md').read_text()

# Indented blocks hold commands, one a line, with a comment after #.
COMMANDS = [line.split('#')[0].strip() for line in TEXT.splitlines() if line.startswith('    ')]
PATHS = sorted(set(re.findall(r'[`(]((?:lib|models|extensions|jobs|tests)/[\w/.]*)[`)]', TEXT)))


def commands(prefix):
    found = [command for command in COMMANDS if command.startswith(prefix)]
    assert found, f'no command of the manual begins with {prefix}'
    return found


def run(words, **environment):
    return subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize('command', commands('make '))
def test_make_target_exists(command):
    assert run(['make', '--dry-run', *shlex.split(command)[1:]]).returncode == 0


@pytest.mark.parametrize('command', commands('jobs/'))
def test_launch_script_prints_its_command(command):
    script, *arguments = shlex.split(command)
    done = run([ROOT / script, '--dry-run', *arguments], PYTHON=sys.executable, MPIRUN='/usr/bin/env')
    assert done.returncode == 0, done.stderr
    assert 'train_imagenet.py' in done.stdout


@pytest.mark.parametrize('command', commands('python train_imagenet.py'))
def test_plan_is_printed(command):
    done = run([sys.executable, *shlex.split(command)[1:]])
    assert done.returncode == 0, done.stderr
    assert '12.8' in done.stdout


@pytest.mark.parametrize('command', commands('jobs/launch.sh'))
def test_options_of_a_training_are_known(command):
    words = shlex.split(command)
    options = words[words.index('--') + 1:]
    options = [word for word in options if not word.startswith('/data')]
    done = run([sys.executable, 'train_imagenet.py', *options, '--plan', '--n-train', '1000'])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('command', commands('python -m'))
def test_module_tells_its_usage(command):
    done = run([sys.executable, '-m', shlex.split(command)[2], '--help'])
    assert done.returncode == 0 and 'usage' in done.stdout


@pytest.mark.parametrize('script', sorted(set(re.findall(r'python (jobs/\w+\.py)', TEXT))))
def test_script_tells_its_usage(script):
    done = run([sys.executable, script, '--help'], PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and 'usage' in done.stdout


@pytest.mark.parametrize('path', PATHS)
def test_path_leads_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize('option', sorted(set(re.findall(r'`(--[a-z-]+)', TEXT))))
def test_option_exists(option):
    known = run([sys.executable, 'train_imagenet.py', '--help']).stdout
    assert option in known or option in ('--dry-run', '--oversubscribe', '--bind-to')


def test_every_public_name_of_the_table_exists():
    from lib import schedules
    for name in re.findall(r'`lib/schedules\.py` `(\w+)`', TEXT):
        assert callable(getattr(schedules, name))
