"""The verdict of a study: one word, by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from biotorch.robustness.checks import Check, Evidence, worst
from biotorch.robustness.significance import interval

Word = Literal["inconclusive", "masked", "not robust", "robust"]


def judge(evidence: Evidence, checks: Sequence[Check]) -> tuple[Word, str]:
    """The word, and the sentence that says why. The first of these that applies:

    ================  ===================================================================================
    `inconclusive`    no attack along the true gradient was run, or a check on the attack itself fired
    `masked`          the accuracy under the feedback gradient overstates what the true gradient, a
                      black box or a transfer leaves, by more than noise at some epsilon
    `not robust`      under the strongest attack at the epsilon of the verdict, less than half of the
                      clean accuracy is left, by the lower end of its 95 % interval
    `robust`          otherwise
    ================  ===================================================================================
    """
    clean = 100 * float(evidence.clean.double().mean())
    left, bounds = strongest(evidence, evidence.judged_at)
    stands = (
        f"Under the strongest attack at epsilon {evidence.judged_at:.3g}, {left:.1f} % of the images [{bounds[0]:.1f}, "
        f"{bounds[1]:.1f}] are still classified as labelled, of {clean:.1f} % without an attack."
    )
    failed = [check for check in checks if check.fired and check.about == "attack"]
    masking = [check for check in checks if check.fired and check.about == "feedback"]
    if not evidence.reference:
        return "inconclusive", f"PGD along the true gradient was not run. {stands}"
    if failed:
        return "inconclusive", f"The attack itself failed: {failed[0].name}. {stands}"
    if masking:
        return "masked", f"The feedback gradient hides what a real attacker gets: {masking[0].sentence}. {stands}"
    if bounds[0] < clean / 2:
        return "not robust", stands
    return "robust", stands


def strongest(evidence: Evidence, epsilon: float) -> tuple[float, tuple[float, float]]:
    """Accuracy (%) where every image meets the worst of all attacks up to `epsilon`, with its 95 % interval."""
    inside = [
        each
        for each in evidence.measurements
        if each.epsilon <= epsilon and each.name not in ("few_pixel", "transfer_to")
    ]
    withstands = evidence.clean.clone()
    if inside:
        attacked = worst(inside)
        withstands &= torch.cat([attacked, torch.ones(len(withstands) - len(attacked), dtype=torch.bool)])
    kept, n = int(withstands.sum()), len(withstands)
    return 100 * kept / n, interval(kept, n)
