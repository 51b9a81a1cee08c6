"""Sanity checks of the network under attack: what its answers depend on, its outputs, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

from biotorch.robustness.evidence import Check, Evidence
from biotorch.robustness.look import Change, Place
from biotorch.robustness.measurement import NOISE, chance, interval

#: Share of images at which gradient and finite differences may disagree, or the margin may jump. Honest networks have
#: 0 to 3 % (kinks of ReLU).
_DISAGREEING = 0.1
#: Share of slightly changed images that may get exactly the same answer.
_SNAPPING = 0.1
#: Smallest number of images by which the gradient is tested.
_COMPARED = 10


def _not_deterministic(evidence: Evidence) -> Check:
    averaged = any(each.settings.get("samples", 1) > 1 and each.gradient == "true" for each in evidence.figures)
    look = evidence.look
    at = "images" if look.noisy or not look.differs("attacked") else "attacked images"
    largest = look.differences["repeated" if at == "images" else "attacked"].largest
    fired = look.noisy or look.differs("attacked")
    return Check(
        "the network is not deterministic",
        "reader" if averaged else "attack",
        fired,
        f"two forward passes of the same {at} differ by up to {largest:.3g}"
        + ("; use an attack that averages over the noise (eot_pgd)" if fired else ""),
        {"difference": largest},
    )


#: Reasons why a change could not be made.
_REASONS: dict[Change, str] = {
    "alone": "the network takes no single image",
    "unseen": "the network cannot be copied, so there is none that has not seen the images",
}


def _change(name: str, changes: tuple[Change, ...], words: str) -> Callable[[Evidence], Check]:
    """Check that a change of how images are passed does not change their outputs."""

    def check(evidence: Evidence) -> Check:
        found = {each: evidence.look.differences[each] for each in changes if each in evidence.look.differences}
        if len(found) < len(changes):
            return Check.impossible(name, "attack", "; ".join(_REASONS[each] for each in changes if each not in found))
        fired = any(map(evidence.look.differs, found))
        largest = max(each.largest for each in found.values())
        return Check(name, "attack", fired, f"{words} by up to {largest:.3g}", {"difference": largest})

    return check


_depends_on_batch = _change(
    "the answer depends on the other images",
    ("shuffled", "alone"),
    "outputs of images that are passed alone or in another batch differ from the first ones",
)
_depends_on_gradient = _change(
    "the answer depends on whether a gradient is computed",
    ("recorded",),
    "outputs with and without a gradient differ",
)
_remembers = _change(
    "the answer depends on earlier images",
    ("unseen",),
    "outputs of the network and of a copy that has not seen the images before differ at attacked images",
)


def _snaps(evidence: Evidence) -> Check:
    share = evidence.look.snaps
    return Check(
        "similar images get exactly the same answer",
        "attack",
        share > _SNAPPING,
        f"{100 * share:.1f} % of the images have exactly the same outputs after a random change of half of epsilon",
        {"share": 100 * share},
    )


def _differentiates(evidence: Evidence) -> Check:
    fired = evidence.look.differentiates
    return Check(
        "the network computes gradients in its forward pass",
        "attack",
        fired,
        "the forward pass runs a backward pass, as defences do that change the image before they classify it; standard "
        "attacks do not differentiate through that" if fired else "the forward pass runs no backward pass",
        {},
    )  # fmt: skip


def _wrong_gradient(evidence: Evidence) -> Check:
    name = "the gradient disagrees with finite differences"
    slopes = evidence.look.slopes
    compared = {place: pair for place, pair in slopes.items() if pair[1] >= _COMPARED}
    if len(compared) < len(slopes):
        counts = " and ".join(f"{pair[1]} {_WHERE[place]}" for place, pair in slopes.items())
        return Check.impossible(name, "attack", f"the two could be compared for {counts} alone")
    place = max(compared, key=lambda each: compared[each][0] / compared[each][1])
    disagree, count = compared[place]
    share = disagree / count
    return Check(
        name,
        "attack",
        share > _DISAGREEING,
        f"the loss changes otherwise than the gradient says at {disagree} of {count} {_WHERE[place]} "
        f"({100 * share:.1f} %)",
        {"share": 100 * share},
    )


def _jumps(evidence: Evidence) -> Check:
    name = "the answer switches in a jump"
    count, compared = evidence.look.jumps
    if compared < _COMPARED:
        return Check.impossible(name, "attack", f"only {compared} images lie on the way to one of another class")
    share = count / compared
    return Check(
        name,
        "attack",
        share > _DISAGREEING,
        f"on the way from an image to one of another class, the margin jumps where the class switches for {count} of "
        f"{compared} images ({100 * share:.1f} %)",
        {"share": 100 * share},
    )


_WHERE: dict[Place, str] = {"clean": "images", "attacked": "attacked images"}


def _no_better_than_noise(evidence: Evidence) -> Check:
    name = "the true gradient leads no higher than random signs"
    higher, lower = evidence.look.rises
    if higher + lower < _COMPARED:
        return Check.impossible(name, "attack", f"the two differ at {higher + lower} images alone")
    return Check(
        name,
        "attack",
        not (higher > lower and chance(higher, lower) < NOISE),
        f"in a few steps along the true gradient the margin rises higher than by random signs at {higher} images, and "
        f"less high at {lower}",
        {"higher": higher, "lower": lower},
    )


def _not_logits(evidence: Evidence) -> Check:
    kind = evidence.look.outputs
    flattened = kind in ("probabilities", "values from 0 to 1")
    return Check(
        "the outputs are no logits",
        "reader" if kind == "log-probabilities" else "attack",
        kind != "logits",
        f"the outputs are {kind}"
        + ("; a softmax or a sigmoid flattens the gradient, so attack the logits before it" if flattened else ""),
        {},
    )


def _not_numbers(evidence: Evidence) -> Check:
    count, n = evidence.look.not_numbers, len(evidence.look.clean)
    return Check(
        "outputs are not numbers",
        "attack",
        count > 0,
        f"without an attack, an output is NaN for {count} of {n} images; such an image counts as misclassified",
        {"images": count},
    )


def _guesses(evidence: Evidence) -> Check:
    right, n = int(evidence.look.clean.sum()), len(evidence.look.clean)
    fired = interval(right, n)[0] <= evidence.look.guessing
    return Check(
        "the network only guesses",
        "network",
        fired,
        f"the network classifies {100 * right / n:.1f} % of the images as labelled; always predicting one class gives "
        f"{evidence.look.guessing:.1f} %",
        {"accuracy": 100 * right / n, "guessing": evidence.look.guessing},
    )


NETWORK_CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    _not_deterministic,
    _depends_on_batch,
    _depends_on_gradient,
    _remembers,
    _snaps,
    _differentiates,
    _wrong_gradient,
    _jumps,
    _no_better_than_noise,
    _not_logits,
    _not_numbers,
    _guesses,
)
