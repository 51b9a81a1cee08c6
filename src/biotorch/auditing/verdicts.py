"""What an audit found, layer by layer."""

from __future__ import annotations

import dataclasses

from biotorch.rules.base import Transports

#: What each verdict counts in `Audit.leak`.
LEAK: dict[str, float] = {"nothing": 0.0, "signs": 0.5, "weights": 1.0}


class LayerAudit(str):
    """A layer's verdict, `nothing`, `signs` or `weights`, with what reaches its input without feedback.

    Attributes:
        upstream: whether any gradient flows upstream of the layer; where none does (the first layer of
            a network on integer images), `nothing` says nothing.
        share: the share (0 to 1) of the gradient at the layer's input that still arrives when the
            feedback of the layers reading that input is zero: it came along an identity shortcut, or
            through a layer left on backpropagation.
        reason: what decides the verdict: the layer's rule, or why it is left.
    """

    share: float
    upstream: bool
    reason: str

    def __new__(cls, transports: Transports, share: float = 0.0, upstream: bool = True, reason: str = "") -> LayerAudit:
        verdict = super().__new__(cls, transports)
        verdict.share, verdict.upstream, verdict.reason = share, upstream, reason
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
    #: Whether a layer has a direct rule, for which gradient past the feedback is a leak.
    direct: bool = False

    @property
    def leak(self) -> float:
        """0 (nothing is transported) to 1 (all weights are): the mean over layers, signs counting half.

        Over those with something upstream, or all if there is none.
        """
        verdicts = [verdict for verdict in self.layers.values() if verdict.upstream] or list(self.layers.values())
        return sum(LEAK[verdict] for verdict in verdicts) / len(verdicts)

    @property
    def verdict(self) -> str:
        """One line: what leaks, and why."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, found in self.layers.items():
            if found != "nothing":
                groups.setdefault((str(found), found.reason), []).append(name)
        parts = [f"{what} of {_some(names)}: {why}" for (what, why), names in groups.items()]
        share = max(self.shortcuts.values(), default=0.0)
        if share >= 0.005:
            why = (
                "identity paths and parallel branches, which shortcuts='keep' leaves"
                if self.direct
                else "identity paths and parallel branches, which the rule allows"
            )
            parts.append(f"up to {share:.0%} of the gradient past the feedback at {_some(list(self.shortcuts))}: {why}")
        return "; ".join(parts if any(groups) else ["nothing is transported", *parts])

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
        lines.append(self.verdict)
        return "\n".join(lines)


def _some(names: list[str]) -> str:
    shown = ", ".join(name or "(root)" for name in names[:2])
    return shown if len(names) <= 2 else f"{len(names)} layers ({shown} ...)"
