"""Accuracy of each class."""

from __future__ import annotations

import torch
from torch import nn

from biotorch.robustness import study
from biotorch.robustness.verdict import class_table, per_class


def test_accuracies_of_each_class():
    labels = torch.tensor([2, 0, 0, 2, 0, 0])
    clean, withstands = torch.tensor([1, 1, 1, 0, 1, 0]).bool(), torch.tensor([1, 0, 1, 0, 0, 0]).bool()
    first, second = per_class(labels, clean, withstands)
    assert (first.label, first.n, first.clean_accuracy, first.robust_accuracy) == (0, 4, 75, 25)
    assert (second.label, second.n, second.clean_accuracy, second.robust_accuracy) == (2, 2, 50, 50)
    assert class_table([first, second], 0.1).rows[0] == ["0", "4", "75.0", "25.0 [4.6, 69.9]"]


def test_of_many_classes_the_weakest_are_shown():
    labels = torch.arange(30)
    found = class_table(per_class(labels, labels >= 0, labels < 25), 0.1)
    assert [row[0] for row in found.rows] == [*map(str, range(25, 30)), *map(str, range(15))]
    assert found.notes == ["The 20 classes of 30 with the lowest accuracy under attack."]


def test_the_classes_of_a_study_make_up_its_worst_case():
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = study(model, (images, model(images).argmax(1)), attacks=["pgd"], epsilons=[0.05, 0.3])
    left, _ = found.worst_case[found.judged_at]
    kept = sum(each.n * each.robust_accuracy / 100 for each in found.per_class)
    assert abs(kept - 0.4 * left) < 1e-6
    assert 0 < kept < 40
    assert [each["label"] for each in found.to_json()["per_class"]] == [each.label for each in found.per_class]
    assert "Accuracy (%) of each class, epsilon 0.3" in str(found)
