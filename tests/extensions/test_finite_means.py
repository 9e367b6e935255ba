import types
from unittest import mock

from extensions import FiniteMeans


def test_the_updater_is_asked_to_confirm():
    updater = mock.Mock()
    FiniteMeans()(types.SimpleNamespace(updater=updater))
    assert updater.mock_calls == [mock.call.confirm()]
