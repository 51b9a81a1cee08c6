"""`broadcast.aligned`: which part of the output's error each position of a layer's input hears."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from biotorch.kernel.broadcast import aligned


def error(*positions: int) -> Tensor:
    """(*positions, 2), every element another number."""
    size = torch.Size((*positions, 2))
    return torch.arange(1.0, size.numel() + 1).view(size)


def heard(e: Tensor, positions: tuple[int, ...], batch_dim: int = 0) -> Tensor:
    """What each position hears, (*positions, 2)."""
    found = aligned(e, positions, batch_dim, "layer", time_major=batch_dim == 1)
    return found.expand(*positions, e.shape[-1])


@pytest.mark.parametrize("positions", [(3,), (3, 4), (3, 4, 5), (1,), (1, 1)])
def test_the_same_positions_hear_their_own_error(positions):
    assert torch.equal(heard(error(*positions), positions), error(*positions))
    assert torch.equal(heard(error(*positions), positions, min(1, len(positions) - 1)), error(*positions))


def test_a_layer_without_positions_hears_the_sum_over_all():
    e = error(3, 4)
    assert torch.equal(heard(e, ()), e.sum((0, 1)))
    assert torch.equal(heard(error(), ()), error())


def test_one_error_per_example_reaches_all_of_its_positions():
    e = error(3)
    assert torch.equal(heard(e, (3, 4)), e[:, None].expand(3, 4, 2))
    assert torch.equal(heard(e, (3, 4, 5)), e[:, None, None].expand(3, 4, 5, 2))


def test_a_layer_with_one_position_per_example_hears_the_sum_over_the_example_s():
    e = error(3, 4)
    assert torch.equal(heard(e, (3,)), e.sum(1))
    assert torch.equal(heard(error(3, 4, 5), (3,)), error(3, 4, 5).sum((1, 2)))


def test_other_positions_hear_the_sum_over_the_example_s():
    """A source sequence of another length than the target's; a decoder's memory."""
    e = error(3, 4)
    assert torch.equal(heard(e, (3, 7)), e.sum(1)[:, None].expand(3, 7, 2))


@pytest.mark.parametrize(("flat", "positions"), [((12,), (3, 4)), ((12,), (3, 2, 2))])
def test_an_output_whose_tokens_were_flattened_is_heard_token_by_token(flat, positions):
    assert torch.equal(heard(error(*flat), positions), error(*positions))


@pytest.mark.parametrize("positions", [(3, 4), (3, 2, 2)])
def test_a_layer_whose_tokens_were_flattened_hears_token_by_token(positions):
    assert torch.equal(heard(error(*positions), (12,)), error(12))


def test_windows_of_an_example_hear_the_error_of_their_example():
    """Swin: (N * windows, tokens); video: (N * frames,)."""
    e = error(3)
    expected = torch.stack([e[row // 4] for row in range(12)])
    assert torch.equal(heard(e, (12, 5)), expected[:, None].expand(12, 5, 2))
    assert torch.equal(heard(e, (12,)), expected)


def test_an_example_hears_the_errors_of_all_its_windows():
    e = error(12)
    assert torch.equal(heard(e, (3,)), torch.stack([e[4 * n : 4 * n + 4].sum(0) for n in range(3)]))


def test_a_table_computed_once_for_the_batch_hears_the_sum_over_the_batch():
    e = error(3)
    assert torch.equal(heard(e, (1, 5, 5)), e.sum(0).expand(1, 5, 5, 2))


def test_what_a_table_hears_does_not_depend_on_how_many_entries_it_has():
    e = error(9)
    assert torch.equal(heard(e, (1, 3, 3)), e.sum(0).expand(1, 3, 3, 2))


def test_an_error_without_a_batch_is_that_of_one_example():
    assert torch.equal(heard(error(), (1,)), error()[None])
    assert torch.equal(heard(error(), (1, 4)), error().expand(1, 4, 2))


def test_a_time_major_layer_hears_its_own_error():
    """Positions (T, N), the batch second."""
    batch_first = error(3, 4)
    expected = batch_first.transpose(0, 1)
    assert torch.equal(heard(batch_first, (4, 3), 1), expected)  # a batch-first output
    assert torch.equal(heard(expected.contiguous(), (4, 3), 1), expected)  # a time-major one
    assert torch.equal(heard(error(3), (4, 3), 1), error(3).expand(4, 3, 2))  # one error per example
    other_length = error(5, 3)  # a time-major output of another length
    assert torch.equal(heard(other_length, (4, 3), 1), other_length.sum(0).expand(4, 3, 2))
    assert torch.equal(heard(error(3, 5), (4, 3), 1), error(3, 5).sum(1).expand(4, 3, 2))


@pytest.mark.parametrize(
    ("own", "positions", "found", "wanted"),
    [((3,), (4,), 3, 4), ((5, 2), (4, 3), 5, 4), ((), (4,), 1, 4), ((6, 2), (4,), 6, 4)],
)
def test_numbers_of_examples_that_do_not_divide_are_refused(own, positions, found, wanted):
    with pytest.raises(RuntimeError, match=rf"^conv: .*{found} example\(s\), this layer's input has {wanted}"):
        aligned(error(*own), positions, 0, "conv")


def test_as_many_positions_as_examples_in_a_time_major_network_are_refused():
    for positions, batch_dim in (((3, 3), 1), ((4, 3), 1), ((3, 4), 0)):
        with pytest.raises(RuntimeError, match=r"^layer: the output has 3 positions and 3 examples"):
            aligned(error(3, 3), positions, batch_dim, "layer", time_major=True)


def test_tokens_in_one_dimension_of_a_time_major_network_come_token_by_token():
    e = error(4, 3)  # (T, N)
    assert torch.equal(aligned(e.flatten(0, 1), (4, 3), 1, "layer", time_major=True), e)
    assert torch.equal(aligned(e.flatten(0, 1), (3, 4), 0, "layer", time_major=True), e.transpose(0, 1))
