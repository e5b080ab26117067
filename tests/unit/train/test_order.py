from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.order import Seating, even, shared_out

SHAPES = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=40)


def seating(shapes: list[str], size: int, *, seed: int = 0) -> Seating:
    return Seating(shapes, batch_size=size, seed=seed, purpose="test")


@settings(deadline=None, max_examples=60)
@given(shapes=SHAPES, size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_picture_is_seen_once_a_pass_and_no_batch_mixes_shapes(
    shapes: list[str], size: int, seed: int
):
    one = seating(shapes, size, seed=seed)
    many = one.batches_in_a_pass
    if many is None:
        places = [seat.place for n in range(len(shapes)) for seat in one.batch(n)]
        assert set(Counter(places).values()) == {size}
        return
    for turn in range(3):
        batches = [one.batch(turn * many + n) for n in range(many)]
        assert sorted(s.place for batch in batches for s in batch) == list(range(len(shapes)))
        for batch in batches:
            assert 1 <= len(batch) <= size
            assert len({shapes[seat.place] for seat in batch}) == 1


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES, size=st.integers(1, 5), number=st.integers(0, 200))
def test_a_batch_is_a_function_of_its_number_alone(shapes: list[str], size: int, number: int):
    walked = seating(shapes, size)
    for earlier in range(number):
        walked.batch(earlier)
    assert walked.batch(number) == seating(shapes, size).batch(number)


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES, size=st.integers(1, 5))
def test_samples_are_numbered_once_and_counted_within_their_shape(shapes: list[str], size: int):
    one, steps = seating(shapes, size), 3 * len(shapes)
    seats = [seat for n in range(steps) for seat in one.batch(n)]
    assert len({seat.number for seat in seats}) == len(seats)
    for shape in set(shapes):
        many = one.batches_in_a_pass or len(shapes)
        mine = sorted(
            seat.company
            for n in range(2 * many)
            for seat in one.batch(n)
            if shapes[seat.place] == shape
        )
        assert mine == list(range(len(mine)))


def test_one_shape_is_cut_like_a_stream_whatever_the_batch_size():
    order = draws.Order(5, seed=0, purpose="test")
    for size in (1, 2, 5, 7):
        one = seating(["a"] * 5, size)
        places = [seat.place for n in range(20) for seat in one.batch(n)]
        assert places == [order.at(n) for n in range(20 * size)]


def test_passes_differ_and_a_seed_changes_them():
    one = seating(["a"] * 4 + ["b"] * 4, 2)
    passes = [tuple(s.place for n in range(4) for s in one.batch(t * 4 + n)) for t in range(6)]
    assert len(set(passes)) > 3
    other = seating(["a"] * 4 + ["b"] * 4, 2, seed=1)
    assert passes[0] != tuple(s.place for n in range(4) for s in other.batch(n))


@given(count=st.integers(1, 60), size=st.integers(1, 12))
def test_runs_are_few_and_of_near_equal_length(count: int, size: int):
    runs = even([(n, n) for n in range(count)], size=size)
    lengths = [len(run) for run in runs]
    assert [seat for run in runs for seat in run] == [(n, n) for n in range(count)]
    assert len(runs) == -(-count // size)
    assert max(lengths) - min(lengths) <= 1


@given(
    total=st.integers(1, 300),
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=8),
)
def test_things_are_shared_out_by_weight_with_one_for_each(total: int, weights: list[int]):
    shares = {(8 * n, 8): weight for n, weight in enumerate(weights)}
    given_out = shared_out(total, shares)
    assert min(given_out.values()) >= 1
    assert sum(given_out.values()) >= total
    if total >= sum(weights):
        for key, weight in shares.items():
            assert abs(given_out[key] - total * weight / sum(weights)) <= 1 + len(weights) / 10
