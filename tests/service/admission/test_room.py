"""The engine's places."""

from service.admission.room import Room, Step


def test_the_room_is_that_of_the_engine_and_a_little_ahead() -> None:
    room = Room(16)
    assert (room.at_once, room.sequences, room.widest) == (16, 18, 9)
    assert (Room(8).sequences, Room(1).sequences, Room(1).widest) == (8, 1, 1)


def test_an_operators_number_is_kept_exactly() -> None:
    room = Room(16, most=5)
    assert (room.at_once, room.sequences) == (5, 5)
    assert Room(16, most=64).at_once == 16


def test_the_cache_bounds_what_runs_but_for_one_alone() -> None:
    room = Room(16, tokens=1000)
    assert room.fits(5000, 0.0)
    room.take(1, 800)
    assert room.fits(200, 0.0)
    assert not room.fits(201, 0.0)
    room.take(-1, -800)
    assert room.fits(5000, 0.0)
    assert (room.reserve(300), room.reserve(5000), Room(16).reserve(5000)) == (300, 500, 5000)


def test_what_the_engine_says_counts_while_it_is_new() -> None:
    room = Room(16)
    room.take(4, 0)
    room.observe(Step(tokens=0, waiting=2, cache=0.0), 10.0)
    assert not room.fits(1, 10.5)
    assert room.fits(1, 11.5)
    room.observe(Step(tokens=0, waiting=1, cache=0.98), 20.0)
    assert not room.fits(1, 20.0)
    room.observe(Step(tokens=0, waiting=1, cache=0.5), 20.0)
    assert room.fits(1, 20.0)


def test_where_nothing_waits_in_a_small_engine_there_is_room() -> None:
    room = Room(4)
    room.take(3, 0)
    room.observe(Step(tokens=0, waiting=0, cache=0.0), 10.0)
    assert room.fits(1, 10.0)
    room.observe(Step(tokens=0, waiting=1, cache=0.0), 10.0)
    assert not room.fits(1, 10.0)
