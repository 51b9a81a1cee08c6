"""`alignment.aligned`: which part of the output's error each row and position of a layer's input hears."""

from __future__ import annotations

import pytest
import torch
from reference_maps import heard_at
from torch import Tensor

from biotorch.kernel.alignment import aligned, on_grid
from biotorch.kernel.broadcast import Network, Receiver


def error(*positions: int) -> Tensor:
    """(*positions, 2), every element another number."""
    size = torch.Size((*positions, 2))
    return torch.arange(1.0, size.numel() + 1).view(size)


def layer(rows=None) -> Receiver:
    return Receiver("layer", network=Network(rows))


def heard(e: Tensor, positions: tuple[int, ...], batch_dim: int = 0, rows=None) -> Tensor:
    """What each position hears, (*positions, 2)."""
    found = aligned(e, positions, layer(rows), batch_dim, time_major=batch_dim == 1)
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


@pytest.mark.parametrize(("rows", "order"), [("interleaved", lambda r: r // 4), ("tiled", lambda r: r % 3)])
def test_rows_of_an_example_hear_the_error_of_their_example(rows, order):
    """Swin: (N * windows, tokens); video: (N * frames,); views joined by torch.cat."""
    e = error(3)
    expected = torch.stack([e[order(row)] for row in range(12)])
    assert torch.equal(heard(e, (12, 5), rows=rows), expected[:, None].expand(12, 5, 2))
    assert torch.equal(heard(e, (12,), rows=rows), expected)


@pytest.mark.parametrize(("rows", "order"), [("interleaved", lambda r: r // 4), ("tiled", lambda r: r % 3)])
def test_an_example_hears_the_errors_of_all_its_rows(rows, order):
    e = error(12)
    assert torch.equal(
        heard(e, (3,), rows=rows), torch.stack([e[[order(r) == n for r in range(12)]].sum(0) for n in range(3)])
    )


@pytest.mark.parametrize("rows", ["interleaved", "tiled"])
def test_tokens_flattened_with_the_batch_hear_their_own_error(rows):
    e = error(3, 4)  # (N, T)
    flat = e.flatten(0, 1) if rows == "interleaved" else e.transpose(0, 1).flatten(0, 1)
    assert torch.equal(heard(e, (12,), rows=rows), flat)
    assert torch.equal(heard(flat, (3, 4), rows=rows), e)


def test_declared_rows_hear_the_example_that_they_name_at_each_position():
    e, index = error(3, 4), torch.tensor([2, 0, 0, 1, 2])
    receiver = layer(lambda: index)._replace(given=(("other", index), ("lay*", index)))
    assert torch.equal(aligned(e, (5, 4), receiver), e[index])
    with pytest.raises(RuntimeError, match=r"^layer: rows=.*beyond the 3"):
        aligned(e, (5, 4), receiver._replace(given=(("*", index + 1),)))
    with pytest.raises(RuntimeError, match=r"^layer: .*3 example.*6 row.*rows="):
        aligned(e, (6,), receiver)


def test_rows_of_which_nobody_knows_the_example_are_refused():
    for own, rows in ((3, 12), (12, 3)):
        with pytest.raises(RuntimeError, match=rf"^layer: .*{own} example.*{rows} row.*not known which.*rows="):
            aligned(error(own), (rows,), layer())


@pytest.mark.parametrize("places", [(4, 6), (2, 3), (8, 6), (3, 5), (1, 9)])
def test_places_of_another_grid_hear_the_errors_that_lie_in_them(places):
    e = error(3, 4, 6).double()
    expected = torch.stack(
        [heard_at(e, (i, j), places) for i in range(places[0]) for j in range(places[1])], 1
    ).unflatten(1, places)
    assert torch.equal(heard(e, (3, *places)), expected)
    assert torch.equal(on_grid(e, places), expected)


def test_pixels_flattened_into_tokens_hear_their_own_error():
    assert torch.equal(heard(error(3, 2, 4), (3, 8)), error(3, 8))
    assert torch.equal(heard(error(3, 8), (3, 2, 4)), error(3, 2, 4))


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
    [
        ((3,), (4,), "3 example", 4),
        ((5, 2), (4, 3), "5 example", 4),
        ((), (4,), "no batch", 4),
        ((6, 2), (4,), "6 ex", 4),
    ],
)
def test_numbers_of_examples_that_do_not_divide_are_refused(own, positions, found, wanted):
    with pytest.raises(RuntimeError, match=rf"^conv: .*{found}.*this layer's input has {wanted} row"):
        aligned(error(*own), positions, Receiver("conv"))


def test_as_many_positions_as_examples_in_a_time_major_network_are_refused():
    for positions, batch_dim in (((3, 3), 1), ((4, 3), 1), ((3, 4), 0)):
        with pytest.raises(RuntimeError, match=r"^layer: the output has 3 positions and 3 examples"):
            aligned(error(3, 3), positions, layer(), batch_dim, time_major=True)


def test_tokens_in_one_dimension_of_a_time_major_network_come_token_by_token():
    e = error(4, 3)  # (T, N)
    assert torch.equal(aligned(e.flatten(0, 1), (4, 3), layer(), 1, time_major=True), e)
    assert torch.equal(aligned(e.flatten(0, 1), (3, 4), layer(), time_major=True), e.transpose(0, 1))
