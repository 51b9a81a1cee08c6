"""Calibration: the error of torchmetrics, the bins of the diagram, outputs of every kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from biotorch.robustness import Calibration, Detector, calibration, corruptions


def example():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(500, 4, generator=generator), torch.randint(4, (500,), generator=generator)


@pytest.mark.slow  # for the import of torchmetrics
def test_the_error_is_that_of_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = example()
    for bins in (5, 15):
        wanted = torchmetrics.multiclass_calibration_error(logits.softmax(1), labels, 4, n_bins=bins, norm="l1")
        assert Calibration.of(logits, labels, bins).ece == pytest.approx(100 * float(wanted), rel=1e-5)


def test_the_error_is_the_weighted_distance_of_the_bins():
    logits, labels = example()
    rows = [
        (max(row), row.index(max(row)) == label)
        for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)
    ]
    wanted = 0.0
    for each in range(15):
        inside = [(sure, right) for sure, right in rows if each / 15 < sure <= (each + 1) / 15]
        wanted += abs(sum(right for _, right in inside) - sum(sure for sure, _ in inside)) / 500
    found = Calibration.of(logits, labels)
    assert found.ece == pytest.approx(100 * wanted, rel=1e-5)
    assert sum(count for count, _, _ in found.bins) == 500
    assert found.accuracy == pytest.approx(sum(count * right for count, right, _ in found.bins) / 500)
    assert found.confidence == pytest.approx(sum(count * sure for count, _, sure in found.bins) / 500)


def test_logits_log_probabilities_and_probabilities_are_the_same_network():
    logits, labels = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    wanted = Calibration.of(logits, labels)
    for outputs in (logits.log_softmax(1), logits.double().softmax(1), logits + 5):
        found = Calibration.of(outputs, labels)
        assert (found.ece, found.confidence) == pytest.approx((wanted.ece, wanted.confidence), rel=1e-4)


def test_certain_and_undefined_outputs():
    found = Calibration.of(
        torch.tensor([[100.0, 0.0], [100.0, 0.0], [torch.nan, 0.0], [100.0, 0.0]]), torch.zeros(4).long()
    )
    assert (found.accuracy, found.confidence, found.ece) == (75.0, 75.0, 0.0)  # NaN: wrong, with no confidence
    assert found.bins == [(1, 0.0, 0.0), (3, 100.0, 100.0)]


def test_the_network_is_measured_in_eval_mode_and_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    images, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = calibration(model, (images, labels), batch_size=7)
    assert found == calibration(model, (images, labels), batch_size=30)
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert found.sentence in str(found)
    with pytest.raises(ValueError, match="bins"):
        calibration(model, (images, labels), bins=0)


def measures(model, data):
    found = corruptions(model, data, ["brightness"], [1], baseline=model)
    return calibration(model, data), found.clean_accuracy, found.accuracy["brightness"][1]


def test_data_and_networks_are_read_as_attacks_read_them():
    torch.manual_seed(0)
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    wanted = measures(model, (images, labels))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=5)
    for same in ((images.numpy(), labels.numpy()), [images, labels.tolist()], loader):
        assert measures(model, same) == wanted
    with torch.inference_mode():
        assert measures(model, (images, labels)) == wanted
    half = measures(copy.deepcopy(model).bfloat16(), (images, labels))[0]
    assert half.confidence == pytest.approx(wanted[0].confidence, abs=1)


def test_one_logit_and_a_reject_class():
    logits, labels = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 1, 1])
    images = logits[:, :, None, None].add(2).div(4).repeat(1, 1, 8, 8)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
    nn.init.constant_(model[2].weight, 4)
    nn.init.constant_(model[2].bias, -2)
    found, accuracy, _ = measures(model, (images, labels))
    assert accuracy == found.accuracy == pytest.approx(200 / 3)
    assert found.confidence == pytest.approx(100 * float(logits.abs().sigmoid().mean()), rel=1e-4)
    detector = Detector(model, lambda images, outputs: images.mean((1, 2, 3)), 0.5)
    with pytest.raises(ValueError, match="reject class"):
        measures(detector, (images, labels))
