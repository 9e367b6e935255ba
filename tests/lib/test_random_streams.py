from lib import random_streams

import numpy as np


def test_stream_is_that_of_its_key_and_counter():
    expected = np.random.Philox(key=np.array([7, 2], np.uint64), counter=np.array([0, 0, 5, 3], np.uint64))
    assert (random_streams.stream(7, 2, 5, 3).random_raw(9) == expected.random_raw(9)).all()


def test_stream_is_the_published_one():
    # Fixed forever, as is what each use of the seed is called.
    drawn = random_streams.stream(7, 2, 5, 3).random_raw(2).tolist()
    assert drawn == [0x356c294b0d95a1e4, 0xec34f17ea7734f1d]
    assert (random_streams.ORDER, random_streams.CROP, random_streams.JITTER,
            random_streams.SYNTHETIC) == (1, 2, 3, 4)


def test_no_two_purposes_or_numbers_draw_the_same():
    places = [(0, 1), (0, 2), (1, 1), (0, 1, 1), (0, 1, 2), (0, 1, 1, 0)]
    drawn = {random_streams.stream(*place).random_raw(1).item() for place in places}
    assert len(drawn) == len(places)


def test_uniforms_are_in_the_half_open_unit_interval():
    drawn = random_streams.uniforms(random_streams.stream(0, 1), 10000)
    assert drawn.min() >= 0 and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 0.01


def test_bytes_are_the_first_of_the_stream_in_little_endian_order():
    words = random_streams.stream(0, 1).random_raw(2).tolist()
    drawn = random_streams.random_bytes(random_streams.stream(0, 1), 11)
    assert drawn.tobytes() == b''.join(word.to_bytes(8, 'little') for word in words)[:11]
