"""A mean gradient that is not finite, of which the host learns late, does no harm and is named."""

import pytest

from tests import ranks_cases

SCRIPT = 'tests/cuda_on_cpu/ranks_guard.py'
VARIANTS = ['CuPy 13', 'CuPy 14']
CASES = ranks_cases.names(SCRIPT)


@pytest.fixture(scope='module')
def guarded(mpirun, environment):
    return {variant: mpirun(2, SCRIPT, check=False, timeout=600, env=environment(variant))
            for variant in VARIANTS}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('variant', VARIANTS)
def test_on_two_ranks(guarded, variant, case):
    done = guarded[variant]
    assert case in done.stdout.split(), done.stdout + done.stderr


def test_an_update_that_does_not_ask_the_guard_shows(mpirun, environment):
    done = mpirun(2, SCRIPT, 'unguarded', check=False, timeout=600, env=environment(VARIANTS[0]))
    assert CASES[0] not in done.stdout.split()
    assert done.returncode != 0 and 'assert_same' in done.stderr
