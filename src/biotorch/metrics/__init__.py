"""How well feedback and forward weights, and updates and gradients, agree: pure functions.

They leave parameters, `.grad`, buffers and the random state as they were.
"""

from biotorch.metrics.gradients import gradient_alignment
from biotorch.metrics.weights import alignment_angles, angle, norm_ratios

__all__ = ["alignment_angles", "angle", "gradient_alignment", "norm_ratios"]
