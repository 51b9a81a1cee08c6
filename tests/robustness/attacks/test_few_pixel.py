"""The few-pixel attack: what it may change, what it finds, what it asks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from biotorch import convert
from biotorch.robustness import FewPixel
from biotorch.robustness.attacks.few_pixel import _others


def conv(classes=4, channels=3, dtype=torch.float32):
    """Its classes all occur on random images, and a pixel reaches some of them."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(144, classes),
        )
        images = torch.rand(200, channels, 8, 8)
    with torch.no_grad():
        net[-1].bias -= net.eval()(images).mean(0)
    return net.train().to(dtype)


def batch(n=6, channels=3, dtype=torch.float32, classes=4):
    images = torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return images, conv(classes, channels, dtype).eval()(images).argmax(1)


class Planted(nn.Module):
    """Two classes: the second one where some weighted pixels are bright enough."""

    def __init__(self, places, threshold):
        super().__init__()
        self.weight = torch.zeros(8, 8)
        for row, column in places:
            self.weight[row, column] = 1.0
        self.threshold = threshold

    def forward(self, images):
        score = (images.mean(1) * self.weight).flatten(1).sum(1)
        return torch.stack([torch.full_like(score, self.threshold), score], 1)


class Counting(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.rows, self.passes = net, 0, []

    def forward(self, images):
        self.rows += len(images)
        self.passes.append(len(images))
        return self.net(images)


def changed(found, images):
    return (found != images).any(1).flatten(1).sum(1)


@settings(max_examples=30, deadline=None)
@given(
    pixels=st.integers(1, 5),
    population=st.integers(4, 12),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    batch_size=st.integers(1, 5),
    loss=st.sampled_from(["ce", "margin", "dlr"]),
    seed=st.integers(0, 100),
)
def test_values_and_number_of_pixels_are_bounded(pixels, population, channels, height, width, batch_size, loss, seed):
    images = torch.rand(4, channels, height, width)
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 3))
    attack = FewPixel(net, pixels, steps=2, population=population, loss=loss, seed=seed, batch_size=batch_size)
    outcome = attack.run(images, net(images).argmax(1))
    found = outcome.adversarial
    assert found.min() >= 0
    assert found.max() <= 1
    assert (changed(found, images) <= pixels).all()
    assert torch.equal(attack.distance(found, images), changed(found, images).float())
    assert (outcome.queries <= attack.passes[0]).all()
    assert (outcome.queries[outcome.robust] == attack.passes[0]).all()  # those that withstand take the whole budget


def test_a_planted_pixel_is_found():
    """Only the pixel (5, 2), brighter than any other image value, decides: 1 place of 64, and all channels at once."""
    images, labels = torch.full((12, 3, 8, 8), 0.2), torch.zeros(12, dtype=torch.int64)
    outcome = FewPixel(Planted([(5, 2)], 0.8), steps=30, population=100).run(images, labels)
    broken = ~outcome.robust
    assert broken.sum() >= 11
    assert (outcome.adversarial[broken, :, 5, 2].mean(1) > 0.8).all()
    assert (changed(outcome.adversarial[broken], images[broken]) == 1).all()


class Target(nn.Module):
    """Two classes: the second one where the channels of the changed pixel are near four values."""

    def forward(self, images):
        values = (images - 0.3).flatten(2).sum(2) + 0.3
        near = -(values - torch.tensor([0.37, 0.61, 0.52, 0.45])).square().sum(1)
        return torch.stack([torch.full_like(near, -0.004), near], 1)


def test_evolution_gets_where_as_many_random_draws_do_not():
    images, labels = torch.full((10, 4, 8, 8), 0.3), torch.zeros(10, dtype=torch.int64)
    drawn = FewPixel(Target(), steps=1, population=410).run(images, labels)
    evolved = FewPixel(Target(), steps=40, population=20).run(images, labels)
    assert drawn.robust.sum() >= 7
    assert evolved.robust.sum() <= 3


def test_more_pixels_do_what_one_cannot():
    images, labels = torch.full((8, 1, 8, 8), 0.2), torch.zeros(8, dtype=torch.int64)
    net = Planted([(row, column) for row in range(8) for column in range(8)], 64 * 0.2 + 1.5)
    one, three = (FewPixel(net, count, steps=20, population=30).run(images, labels) for count in (1, 3))
    assert one.robust.all()
    assert not three.robust.any()
    assert (changed(three.adversarial, images) > 1).all()


def test_a_batch_does_as_well_as_its_images_alone():
    images, _ = batch(48)
    net = conv().eval()
    labels = net(images).argmax(1)
    together, alone = (
        FewPixel(net, 2, steps=6, population=30, batch_size=size).run(images, labels).robust for size in (48, 1)
    )
    assert 4 < alone.sum() < 44  # else the comparison says nothing
    assert abs(int(together.sum()) - int(alone.sum())) <= 5


def test_equal_seeds_give_equal_bits_and_others_do_not():
    images, labels = batch()
    found = [FewPixel(conv(), steps=3, population=8, seed=seed).run(images, labels) for seed in (5, 5, 6)]
    assert torch.equal(found[0].adversarial, found[1].adversarial)
    assert torch.equal(found[0].losses.nan_to_num(9), found[1].losses.nan_to_num(9))
    assert not torch.equal(found[0].adversarial, found[2].adversarial)


@pytest.mark.parametrize("size", [3, 40])
def test_queries_are_counted_and_passes_bounded(size):
    images, labels = batch(10)
    model = Counting(conv())
    attack = FewPixel(model, 2, steps=4, population=9, batch_size=size)
    outcome = attack.run(images, labels)
    assert int(outcome.queries.sum()) == model.rows - 2 * len(images)
    assert max(model.passes) <= max(size, 9)
    assert (outcome.queries[~outcome.robust] < attack.passes[0]).any()  # what is broken leaves


def test_a_pass_is_shared_by_images():
    images, labels = torch.full((8, 1, 8, 8), 0.2), torch.zeros(8, dtype=torch.int64)
    model = Counting(Planted([(0, 0)], 9.0))
    FewPixel(model, steps=4, population=10, batch_size=80)(images, labels)
    assert model.passes == [8] + [80] * 5


def test_the_network_and_the_global_state_are_left_as_they_were():
    model = conv()
    model[1].eval()
    images, labels = batch()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes, before = [each.training for each in model.modules()], torch.random.get_rng_state()
    FewPixel(model, steps=2, population=8).run(images, labels)
    assert [each.training for each in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, batch()[0])


def test_float64_one_image_and_a_converted_network():
    images, labels = batch(1, dtype=torch.float64)
    net = convert(conv(dtype=torch.float64), "dfa")
    labels = net.eval()(images).argmax(1)
    found = FewPixel(net, steps=3, population=8)(images, labels)
    assert found.dtype == torch.float64
    assert found.shape == images.shape


def test_the_loss_falls_never():
    images, labels = batch(12)
    for loss in ("ce", "margin", "dlr"):
        losses = FewPixel(conv(), steps=8, population=10, loss=loss).run(images, labels).losses
        survivors = losses[:, ~losses.isnan().any(0)]
        assert survivors.shape[1] > 0
        assert (survivors.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("population", [4, 5, 9])
def test_parents_are_others_and_equally_likely(population):
    drawn = torch.stack(_others(3000, population, torch.Generator().manual_seed(0)))  # (3, n, P)
    members = torch.cat([torch.arange(population).expand(1, 3000, population), drawn])
    assert (members.sort(0).values.diff(dim=0) > 0).all()
    for each in drawn:
        for own in range(population):
            shares = each[:, own].bincount(minlength=population) / 3000
            assert shares[own] == 0
            assert (shares[torch.arange(population) != own] - 1 / (population - 1)).abs().max() < 0.06


def test_outputs_that_are_no_numbers_break_nothing():
    class Nan(nn.Module):
        def forward(self, images):
            return torch.stack([torch.zeros(len(images)), images.flatten(1).amax(1).sub(0.9).sqrt()], 1) * 1.0

    images, labels = torch.full((3, 1, 8, 8), 0.2), torch.ones(3, dtype=torch.int64)
    found = FewPixel(Nan(), steps=2, population=8)(images, labels)
    assert found.isfinite().all()


def test_mistakes_are_told():
    for arguments, message in (
        ({"pixels": 0}, "pixels"),
        ({"steps": 0}, "steps"),
        ({"population": 3}, "at least 4"),
        ({"loss": "dlrr"}, "ce, margin, dlr"),
    ):
        with pytest.raises(ValueError, match=message):
            FewPixel(conv(), **arguments)
    flat = nn.Linear(5, 2)
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\(n, C, H, W\)"):
            FewPixel(flat)(torch.rand(2, 5), wrong)
    with pytest.raises(ValueError, match="three classes"):
        FewPixel(Planted([(0, 0)], 0.9), loss="dlr")(torch.full((1, 1, 8, 8), 0.1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(TypeError, match="epsilon"):
        FewPixel(conv(), epsilon=0.1)


def test_settings_are_its_arguments():
    attack = FewPixel(conv(), 3, steps=7)
    assert list(attack.settings) == ["pixels", "steps", "population", "loss", "seed", "batch_size", "abstain"]
    assert repr(attack).startswith("FewPixel(pixels=3, steps=7, population=150, loss='margin'")
    assert attack.epsilon == 3.0
