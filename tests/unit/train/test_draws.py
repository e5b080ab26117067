import torch
from kubebooth_trainer.train import draws


def test_a_draw_depends_on_nothing_but_seed_purpose_and_index():
    torch.manual_seed(1)
    first = draws.normal((4, 2, 2), 7, "noise", "Denoiser", 3)
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(first, draws.normal((4, 2, 2), 7, "noise", "Denoiser", 3))


def test_every_part_of_the_key_matters():
    keys = {
        draws.key(0, "noise", 1),
        draws.key(1, "noise", 1),
        draws.key(0, "noisf", 1),
        draws.key(0, "noise", 2),
        draws.key(0, "noise", 1, 0),
        draws.key(0, "noise1"),
    }
    assert len(keys) == 6


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    draws.normal((100,), 0, "noise", 0)
    draws.integer(1000, 0, "timestep", 0)
    assert torch.equal(wanted, torch.rand(3))


def test_integers_cover_their_range_evenly():
    counts = [0] * 10
    for index in range(5000):
        counts[draws.integer(10, 0, "timestep", index)] += 1
    assert min(counts) > 400
    assert max(counts) < 600


def test_a_chance_comes_true_as_often_as_it_says():
    hits = sum(draws.chance(0.3, 0, "dropout", index) for index in range(4000))
    assert 1080 < hits < 1320
    assert not any(draws.chance(0.0, 0, "dropout", index) for index in range(100))
    assert all(draws.chance(1.0, 0, "dropout", index) for index in range(100))


def test_normal_draws_have_mean_zero_and_deviation_one():
    drawn = draws.normal((100_000,), 3, "noise", 0)
    assert abs(drawn.mean().item()) < 0.02
    assert abs(drawn.std().item() - 1) < 0.02


def test_each_pass_shows_every_place_once_and_in_another_order():
    order = draws.Order(7, seed=0, purpose="pictures")
    passes = [[order.at(7 * turn + place) for place in range(7)] for turn in range(5)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5


def test_an_order_can_be_asked_in_any_sequence():
    forward = draws.Order(5, seed=1, purpose="pictures")
    wanted = [forward.at(index) for index in range(23)]
    other = draws.Order(5, seed=1, purpose="pictures")
    assert [other.at(index) for index in reversed(range(23))] == wanted[::-1]
