"""Adversarial examples of a studied run: some to look at, and all of them as files of 8-bit images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biotorch import _files
from biotorch.robustness import PGD, Attack, Study, Transfer, as_8bit
from biotorch.robustness.attacks.attempt import outputs_of
from biotorch.robustness.attacks.norms import Norm, per_example, project, size
from biotorch.robustness.measurement import TWIN, Measurement
from biotorch.robustness.parts import parts_that_classify
from biotorch.robustness.plan import find

#: Number of examples on the sheet.
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images with adversarial examples and the network's predictions.

    Attributes:
        images, adversarial: (n, C, H, W) in [0, 1].
        labels: (n,) int64.
        before, after: (n,) int64, the network's predictions without and with the attack.
        epsilon: radius of the attack.
        attack: the attack in words.
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    epsilon: float
    attack: str


def examples(model: nn.Module, images: Tensor, labels: Tensor, study: Study, norm: Norm, seed: int) -> Examples:
    """Examples of PGD along the true gradient at the epsilon of the verdict, for the first images that are right.

    They are searched among the first 256 images; if none of these is right, the first images are taken.
    """
    right = (predictions(model, images[:256], labels[:256], 256) == labels[:256]).nonzero()[:, 0]
    shown = (right if len(right) else torch.arange(len(images)))[:_SHOWN]
    images, labels = images[shown], labels[shown]
    adversarial = PGD(model, study.judged_at, norm=norm, seed=seed)(images, labels)
    before, after = (predictions(model, each, labels, _SHOWN) for each in (images, adversarial))
    return Examples(images, adversarial, labels, before, after, study.judged_at, "PGD along the true gradient")


def predictions(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Predicted classes (n,) of images (n, ...) with labels (n,), as attacks see them."""
    [outputs] = outputs_of([model], images, labels, batch_size)
    return outputs.argmax(1).to(labels.device)


@dataclasses.dataclass(frozen=True)
class Saved:
    """File of adversarial examples at one epsilon.

    Attributes:
        path: the file, see `save_examples`.
        examples: what it holds, as 8-bit images.
        accuracy, unrounded_accuracy: accuracy (%) on the saved examples, and on the attack's own, not rounded.
    """

    path: Path
    examples: Examples
    accuracy: float
    unrounded_accuracy: float


def save_examples(
    folder: Path,
    model: nn.Module,
    twin: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    study: Study,
    state_hash: str,
) -> list[Saved]:
    """Write the adversarial examples of the strongest attack of a study at each epsilon, as 8-bit images.

    The attack runs again, with the seed of the study. Images of the data that are no 8-bit images are rounded first.
    Where rounding undoes an example, as it does just across a boundary, one deeper inside the wrong class is taken:
    that of all steps of PGD, or else the one in the same direction at the edge of the ball.
    Each `adversarial-epsilon=E.npz` holds, for the n images that the attack saw:

    ========================  ==============================================================================
    `images`                  (n, C, H, W) uint8
    `adversarial`             (n, C, H, W) uint8; divided by 255, no further from the images than epsilon
    `labels`                  (n,) int64
    `clean_predictions`       (n,) int64, predicted classes of `images`
    `unrounded_predictions`   (n,) int64, predicted classes of the attack's own examples, not rounded
    `predictions`             (n,) int64, predicted classes of `adversarial`
    `epsilon`, `norm`         radius and norm of the ball
    `attack`, `gradient`      the attack with its settings, and the gradient that it followed, or ""
    `state_hash`              digest of the network's weights, as in results.json
    ========================  ==============================================================================
    """
    found = []
    for measured in _strongest(study):
        own, truth = images[: measured.n], labels[: measured.n]
        attack = _rebuilt(measured, model, twin, images, labels)
        rounded = (255 * own).round() / 255
        if bool(((own - rounded).abs() > 1e-5).any()):
            own = rounded
        adversarial = attack(own, truth)
        whole = _whole(attack, model, own, truth, adversarial)
        saved = (whole.to(own) / 255).to(own)
        clean, before, after = (
            predictions(model, each, truth, attack.batch_size) for each in (own, adversarial, saved)
        )
        content = {
            "images": (255 * own).round().to(torch.uint8),
            "adversarial": whole,
            "labels": truth,
            "clean_predictions": clean,
            "unrounded_predictions": before,
            "predictions": after,
        }
        words = {"norm": attack.norm, "attack": measured.label, "gradient": measured.gradient or ""}
        path = folder / f"adversarial-epsilon={measured.epsilon:.4g}.npz"
        arrays: dict[str, Any] = {name: each.cpu().numpy() for name, each in content.items()}
        arrays |= {**words, "epsilon": measured.epsilon, "state_hash": state_hash}
        _files.write(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays))  # type: ignore[misc]
        named = " along the ".join([measured.label, *([f"{measured.gradient} gradient"] if measured.gradient else [])])
        shown = Examples(own, saved, truth, clean, after, measured.epsilon, named)
        accuracies = (100 * float((each == truth).double().mean()) for each in (after, before))
        found.append(Saved(path, shown, *accuracies))
    return found


def _whole(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor) -> Tensor:
    """8-bit examples (n, ...) uint8: of each image the first that breaks it after rounding, see `save_examples`."""
    length = size(adversarial - images, attack.norm)
    further = per_example(attack.epsilon / length.clamp_min(1e-12), images) * (adversarial - images)
    candidates = [adversarial, project(images + further, images, attack.epsilon, attack.norm)]
    if isinstance(attack, PGD) and attack.stop_at_success:
        deep = type(attack)(model, **{**attack.settings, "stop_at_success": False})
        deep.warns = False
        candidates.insert(1, deep(images, labels))
    chosen = as_8bit(adversarial, images, attack.epsilon, attack.norm)
    whole = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for each in candidates:
        rounded = as_8bit(each[whole], images[whole], attack.epsilon, attack.norm)
        found = predictions(model, (rounded.to(images) / 255).to(images), labels[whole], attack.batch_size)
        broken = (found != labels[whole]) & (found != (-1 if attack.abstain is None else attack.abstain))
        chosen[whole.nonzero()[broken, 0]] = rounded[broken]
        whole[whole.clone()] = ~broken
        if not bool(whole.any()):
            break
    return chosen


def _strongest(study: Study) -> list[Measurement]:
    """Measurement of the lowest accuracy at each epsilon above 0, the last of several, among those of the table."""
    lowest: dict[float, Measurement] = {}
    for each in study.measurements:
        if each.purpose == "figure" and each.epsilon > 0 and each.role != "no radius" and not each.on_twin:
            before = lowest.get(each.epsilon)
            if before is None or each.robust_accuracy <= before.robust_accuracy:
                lowest[each.epsilon] = each
    return [lowest[epsilon] for epsilon in sorted(lowest)]


def _rebuilt(measured: Measurement, model: nn.Module, twin: nn.Module | None, images: Tensor, labels: Tensor) -> Attack:
    """The attack of a measurement, with the settings that it had, and the twin or the part that it transferred from."""
    if measured.source is None:
        return find(measured.name)(model, **measured.settings)
    source = twin if measured.source == TWIN else parts_that_classify(model, images, labels)[measured.source]
    assert source is not None
    return Transfer(model, source=source, **measured.settings)
