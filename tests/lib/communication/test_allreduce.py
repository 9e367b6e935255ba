"""Sums of payloads over processes, through shared memory and through MPI."""

import numpy as np
import pytest

from lib.communication import allreduce as payload_sum

CASES = ['processes_of_one_host_share_memory', 'others_send_the_same_bits',
         'a_turn_is_no_longer_than_what_is_sent', 'different_sizes_are_refused_everywhere',
         'one_process_that_can_not_map_the_memory_sends_all_to_mpi',
         'no_room_on_the_first_process_sends_all_to_mpi',
         'memory_of_another_is_not_taken_for_the_first_process_s', 'no_file_stays_open']


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('ranks', [2, 3, 5])
def test_on_ranks(assert_on_ranks, ranks, case):
    assert_on_ranks('tests/lib/communication/ranks_allreduce.py', ranks, case)


class OneProcess:
    rank, size = 0, 1


def test_one_process_has_its_own_payload_and_calls_no_mpi():
    sums = payload_sum.join(OneProcess(), 10, 'float16')
    sums.payload(4)[...] = np.arange(4)
    assert sums.sum(4).tolist() == [0, 1, 2, 3]
