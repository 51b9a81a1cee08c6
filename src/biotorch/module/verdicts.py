"""What an audit found, layer by layer."""

from __future__ import annotations

import dataclasses

from biotorch.rules.base import Transports

#: What each verdict counts in `Audit.leak`.
LEAK: dict[str, float] = {"nothing": 0.0, "signs": 0.5, "weights": 1.0}


class AuditError(RuntimeError):
    """The experiment cannot decide: a layer never ran, no gradient flows, or passes do not repeat."""


class LayerAudit(str):
    """A layer's verdict, `nothing`, `signs` or `weights`, with what reaches its input without feedback.

    Attributes:
        upstream: whether any gradient flows upstream of the layer; where none does (the first layer of
            a network on integer images), `nothing` says nothing.
        share: the share (0 to 1) of the gradient at the layer's input that still arrives when the
            feedback of the layers reading that input is zero: it came along an identity shortcut, or
            through a layer left on backpropagation.
    """

    share: float
    upstream: bool

    def __new__(cls, transports: Transports, share: float = 0.0, upstream: bool = True) -> LayerAudit:
        verdict = super().__new__(cls, transports)
        verdict.share, verdict.upstream = share, upstream
        return verdict


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit` measured; prints as a table."""

    #: By dotted name: `nothing`, `signs` or `weights`, and `.share`.
    layers: dict[str, LayerAudit]
    #: The residual blocks (where none is known, the layers) at whose input gradient arrives past the
    #: feedback, with its share: legitimate for rules that go backwards layer by layer, a leak for
    #: direct rules under `shortcuts="keep"`.
    shortcuts: dict[str, float]

    @property
    def leak(self) -> float:
        """0 (nothing is transported) to 1 (all weights are): the mean over layers, signs counting half.

        Over those with something upstream, or all if there is none.
        """
        verdicts = [verdict for verdict in self.layers.values() if verdict.upstream] or list(self.layers.values())
        return sum(LEAK[verdict] for verdict in verdicts) / len(verdicts)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name or "(root)") for name in self.layers))
        lines = [f"{'layer'.ljust(width)}  transports  past feedback", f"{'-' * width}  ----------  -------------"]
        for name, verdict in self.layers.items():
            share = f"{verdict.share:.1%}" if verdict.share else "-"
            shown = str(verdict) if verdict.upstream else "- (first)"
            lines.append(f"{(name or '(root)').ljust(width)}  {shown:<10}  {share}")
        counts = {kind: sum(verdict == kind for verdict in self.layers.values()) for kind in LEAK}
        tally = ", ".join(f"{count} transport {kind}" for kind, count in counts.items() if count)
        lines.append(f"leak {self.leak:.2f}: of {len(self.layers)} layers {tally}")
        if self.shortcuts:
            named = ", ".join(f"{name} ({share:.1%})" for name, share in self.shortcuts.items())
            lines.append(f"gradient past the feedback at the input of {named}")
        return "\n".join(lines)
