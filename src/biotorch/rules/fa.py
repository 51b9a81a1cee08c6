"""Feedback alignment (FA)."""

from __future__ import annotations

import dataclasses

from torch import Generator, Tensor

from biotorch.rules import initial
from biotorch.rules.base import FeedbackRule, RandomFeedback
from biotorch.rules.registry import register


@register("fa", transports="nothing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(RandomFeedback, FeedbackRule):
    """The error goes backwards through a fixed random B (Lillicrap et al. 2014, 2016; paper, equation 3).

    delta W_i = -((B_{i+1} delta z_{i+1}) * phi'(z_i)) y_{i-1}^T, with B in the shape of W and drawn
    by `feedback_init`. The rules that learn such a B are subclasses of this one.

    Args:
        feedback_angle: soft start: turn B, without changing its norm, to this alignment angle (W to B) in degrees,
            0 to 180. A random B has about 90.

    Raises:
        ValueError: `feedback_angle` is no angle, or is given with `feedback_init="weight"`, which fixes it to 0, or
            with a `feedback_density` below 1, which would change it.
    """

    title = "feedback alignment"

    feedback_angle: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        angle = self.feedback_angle
        if angle is None:
            return
        if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 <= angle <= 180:
            raise ValueError(f"feedback_angle is an angle in degrees, 0 to 180, not {angle!r}")
        if self.feedback_distribution == "weight":
            raise ValueError("feedback_init='weight' starts B at W, at 0 degrees: leave out feedback_angle")
        if self.feedback_density < 1:
            raise ValueError("a feedback_density below 1 would change the feedback_angle: leave one of them out")

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor:
        if self.feedback_distribution == "weight":
            return weight.detach().clone()
        drawn = initial.draw(blank, self.feedback_distribution, generator)
        return drawn if self.feedback_angle is None else initial.turned(drawn, weight.detach(), self.feedback_angle)
