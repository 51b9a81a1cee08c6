"""Robustness study of one network: attacks, sanity checks of the attacks, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from biotorch.robustness.attacks.base import require_images
from biotorch.robustness.attacks.norms import Norm, largest
from biotorch.robustness.checks import rising, run_checks
from biotorch.robustness.evidence import Evidence
from biotorch.robustness.measurement import Planned
from biotorch.robustness.per_class import per_class
from biotorch.robustness.plan import Preset, Wanted, for_checks, longer_than, plan, reference_of
from biotorch.robustness.runner import Display, Runner, Store
from biotorch.robustness.verdict import Study, judge, strongest, withstanding


def study(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    attacks: Sequence[Wanted] | None = None,
    epsilons: Sequence[float] | None = None,
    preset: Preset | None = None,
    *,
    norm: Norm = "linf",
    autoattack: bool = False,
    square_queries: Sequence[int] | None = None,
    source: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 250,
    folder: Path | str | None = None,
    display: Display | None = None,
) -> Study:
    """Attack a network in several ways, check the attacks themselves, and give a verdict.

    Args:
        model: maps images in [0, 1] to outputs (n, C). It may be converted by `biotorch.convert` or not.
        data: images (n, ...) in [0, 1] and labels (n,) int64.
        attacks: names, `{"type": name, ...}` with settings, or subclasses of `Attack`. Default: random signs, FGSM,
            PGD in 40 steps and Square with 1,000 queries. A white-box attack runs along both gradients unless its
            settings choose one.
        epsilons: radii. Default: 2/255, 8/255 and 0.1.
        preset: `quick`, or `paper` for the settings of the paper's section 4.2. The paper prints few of them; the
            others are our reading.
        norm: norm of the ball, `linf`, `l2` or `l1`.
        autoattack: run AutoAttack (standard) in addition.
        square_queries: query budgets of Square.
        source: another network for the same images, such as a twin trained by backpropagation. Adversarial examples
            of each network are tried on the other.
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
    images, labels = data
    require_images(images, labels)
    display, store = display or Display(), Store(None if folder is None else Path(folder))
    planned = plan(
        model,
        attacks,
        epsilons,
        preset or "quick",
        norm=norm,
        autoattack=autoattack,
        square_queries=square_queries,
        transfer=source is not None,
    )
    radii = sorted({each.epsilon for each in planned if each.epsilon > 0 and each.name != "few_pixel"})
    if not radii and {each.name for each in planned} == {"few_pixel"}:
        raise ValueError("attacks: few_pixel has no epsilon to judge a network at; add another attack")
    if not radii:
        raise ValueError("epsilons: at least one above 0 is needed to judge a network")
    judged_at = _middle(planned)
    unbounded = largest(norm, images[0].numel())
    reference = reference_of(planned)
    if reference is not None:
        planned += for_checks(dataclasses.replace(reference, epsilon=judged_at), unbounded)
    runner = Runner(model, source, images, labels, seed, batch_size, store, display)
    runner.first_look()
    evidence = Evidence(
        runner.run(planned),
        None if reference is None else reference.label,
        judged_at,
        unbounded,
        runner.clean,
        runner.guessing,
        runner.spread,
        runner.probabilities,
        runner.not_numbers,
    )
    if reference is not None and (late := rising(evidence)):
        longer = [longer_than(dataclasses.replace(reference, epsilon=each.epsilon)) for each in late]
        evidence = dataclasses.replace(evidence, measurements=[*evidence.measurements, *runner.run(longer)])
    measurements, checks = evidence.measurements, run_checks(evidence)
    word, sentence = judge(evidence, checks)
    return Study(
        word,
        sentence,
        judged_at,
        checks,
        list(measurements),
        100 * float(runner.clean.double().mean()),
        {each: strongest(evidence, each) for each in radii},
        runner.cosine,
        sum(each.seconds for each in measurements),
        per_class(labels, runner.clean, withstanding(evidence, judged_at)),
    )


def _middle(planned: Sequence[Planned]) -> float:
    """Middle epsilon above zero of the attacks along the true gradient, or of all attacks if there are none."""
    white = sorted({each.epsilon for each in planned if each.gradient == "true" and each.epsilon > 0})
    radii = white or sorted({each.epsilon for each in planned if each.epsilon > 0 and each.name != "few_pixel"})
    return radii[(len(radii) - 1) // 2]
