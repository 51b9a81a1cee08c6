"""Robustness study of one network: attacks, sanity checks of the attacks, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from biotorch.robustness.attacks.inputs import read_pair, require_network
from biotorch.robustness.attacks.library import fits_tiles
from biotorch.robustness.attacks.norms import Norm, largest
from biotorch.robustness.checks import rising, run_checks
from biotorch.robustness.evidence import Evidence
from biotorch.robustness.look import look
from biotorch.robustness.measurement import TWIN, Planned
from biotorch.robustness.parts import parts_that_classify
from biotorch.robustness.plan import (
    Preset,
    Wanted,
    confirmations,
    default_epsilons,
    for_checks,
    longer_than,
    plan,
    reference_of,
)
from biotorch.robustness.runner import Display, Runner
from biotorch.robustness.store import Store
from biotorch.robustness.verdict import Study, judge, per_class, strongest, withstanding, worth_confirming


def study(
    model: nn.Module,
    data: tuple[Any, Any] | Iterable[Any],
    attacks: Sequence[Wanted] | Wanted | None = None,
    epsilons: Sequence[float | str] | float | str | None = None,
    preset: Preset | None = None,
    *,
    norm: Norm = "linf",
    autoattack: bool = False,
    square_queries: Sequence[int] | None = None,
    source: nn.Module | None = None,
    abstain: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    folder: Path | str | None = None,
    display: Display | None = None,
) -> Study:
    """Attack a network in several ways, check the attacks themselves, and give a verdict.

    Args:
        model: maps images in [0, 1] to outputs (n, C). It may be converted by `biotorch.convert` or not.
        data: images (n, ...) in [0, 1] and labels (n,), as tensors or arrays; or a DataLoader.
        attacks: names, `{"type": name, ...}` with settings, or subclasses of `Attack`. Default: random signs, FGSM,
            PGD in 40 steps and, if it can tile the images, Square with 1,000 queries. A white-box attack runs along
            both gradients unless its settings choose one.
        epsilons: radii, as numbers or as texts such as "8/255". Default for images of one channel: 0.1, 0.2 and 0.3 (in
            L2 1, 1.5 and 2); for others: 2/255 and 8/255 (in L2 0.25 and 0.5). The verdict is given at the middle one,
            of two at the larger.
        preset: `quick`, or `paper` for the settings of the paper's section 4.2. The paper prints few of them; the
            others are our reading.
        norm: norm of the ball, `linf`, `l2` or `l1`.
        autoattack: run AutoAttack (standard) in addition.
        square_queries: query budgets of Square.
        source: another network for the same images, such as a twin trained by backpropagation. Adversarial examples
            of each network are tried on the other.
        abstain: index of a reject class. An image whose adversarial example is rejected withstands; the table says how
            many do. Without an attack, a rejected image counts as wrong.
        seed: seed of all randomness. Equal seeds and batch sizes give equal figures.
        batch_size: number of images attacked at once.
        folder: folder for the measurements; the next call with the same folder reuses them. None keeps nothing.
        display: receives the progress of the study.

    Raises:
        ValueError: data, attacks or epsilons are unusable.
        BoundsError: an attack produced an example outside its ball.

    Examples:
        >>> images, model = torch.rand(20, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> found = biotorch.robustness.study(model, (images, model(images).argmax(1)), attacks=["pgd"], epsilons=[0.5])
        >>> found.verdict, found.clean_accuracy
        ('not robust', 100.0)
    """
    require_network(model)
    if source is not None:
        require_network(source, "source")
    images, labels = read_pair(data)
    display, store = display or Display(), Store(folder)
    planned = plan(
        model,
        attacks,
        epsilons,
        preset or "quick",
        usual=default_epsilons(images, norm),
        norm=norm,
        autoattack=autoattack,
        square_queries=square_queries,
        transfer=source is not None,
        tiles=fits_tiles(images, norm),
    )
    bounded = [each for each in planned if each.epsilon > 0 and each.kind.role != "no radius"]
    radii = sorted({each.epsilon for each in bounded})
    if not radii and any(each.kind.role == "no radius" for each in planned):
        raise ValueError("attacks: few_pixel has no epsilon to judge a network at; add another attack")
    if not radii:
        raise ValueError("epsilons: at least one above 0 is needed to judge a network")
    judged_at = _middle(bounded)
    seen = look(
        model,
        images,
        labels,
        judged_at,
        norm,
        abstain=abstain,
        seed=seed,
        batch_size=batch_size,
    )
    runner = Runner(model, images, labels, abstain, seed, batch_size, store, display, seen)
    if source is not None:
        runner.sources[TWIN] = source
    evidence = _gather(runner, planned, radii, judged_at, largest(norm, images[0].numel()))
    checks = run_checks(evidence)
    word, sentence = judge(evidence, checks)
    return Study(
        word,
        sentence,
        judged_at,
        checks,
        list(evidence.measurements),
        100 * float(seen.clean.double().mean()),
        {each: strongest(evidence, each) for each in radii},
        seen.cosine,
        sum(each.seconds for each in evidence.measurements),
        per_class(labels, seen.clean, withstanding(evidence, judged_at)),
    )


def _gather(
    runner: Runner, planned: list[Planned], radii: Sequence[float], judged_at: float, unbounded: float
) -> Evidence:
    """Measurements of the planned attacks, and of those that the checks and a verdict of `robust` need."""
    reference = reference_of(planned, runner.look.noisy)
    if reference is None:
        return Evidence(runner.run(planned), None, judged_at, unbounded, runner.look)
    reference = dataclasses.replace(reference, epsilon=judged_at)
    larger = next((each for each in radii if each > judged_at), min(2 * judged_at, unbounded))
    planned += for_checks(reference, larger, unbounded)
    evidence = Evidence(runner.run(_once(planned)), reference.label, judged_at, unbounded, runner.look)
    if late := rising(evidence):
        longer = [longer_than(dataclasses.replace(reference, epsilon=each.epsilon)) for each in late]
        evidence = evidence.with_more(runner.run(longer))
    if not worth_confirming(evidence, run_checks(evidence)):
        return evidence
    parts = parts_that_classify(runner.model, runner.images, runner.labels)
    runner.sources |= parts
    tiles = fits_tiles(runner.images, reference.settings.get("norm", "linf"))
    done = {(each.label, each.epsilon, each.gradient) for each in evidence.measurements}
    confirmed = [
        each
        for each in confirmations(reference, list(parts), tiles)
        if (each.label, each.epsilon, each.gradient) not in done
    ]
    return dataclasses.replace(evidence.with_more(runner.run(confirmed)), confirmed=True, black_box=tiles)


def _once(planned: Sequence[Planned]) -> list[Planned]:
    """Planned attacks without those of a check that are planned for the table, too."""
    figures = {dataclasses.replace(each, purpose="check") for each in planned if each.purpose == "figure"}
    return [each for each in planned if each.purpose == "figure" or each not in figures]


def _middle(bounded: Sequence[Planned]) -> float:
    """Middle epsilon of the attacks along the true gradient, or of all attacks if there are none.

    Of an even number of epsilons it is the upper one in the middle.
    """
    white = sorted({each.epsilon for each in bounded if each.gradient == "true"})
    radii = white or sorted({each.epsilon for each in bounded})
    return radii[len(radii) // 2]
