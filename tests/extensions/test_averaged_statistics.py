import types

import pytest

from extensions import AveragedStatistics


@pytest.mark.parametrize('variance', ['mean', 'pooled'])
def test_the_average_of_the_kind_asked_for_is_bound(variance):
    called = []
    statistics = types.SimpleNamespace(select_average=lambda *arguments: called.append(arguments))
    AveragedStatistics(statistics, 'comm', variance)(trainer=None)
    assert called == [('comm', variance)]
