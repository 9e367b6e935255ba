from lib.prepare import progress

import pytest


@pytest.mark.parametrize('seconds, told', [(3.4, '3 s'), (119, '119 s'), (121, '2 min'), (7300, '2 h')])
def test_time_left_is_told_in_a_unit_that_fits(seconds, told):
    assert progress.time_left(seconds) == told
