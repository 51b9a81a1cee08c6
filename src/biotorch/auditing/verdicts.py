"""Results of an audit, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from biotorch.rules.base import Transports

#: Part of W that a layer transports; `unknown` if the audit cannot tell.
Verdict: TypeAlias = Transports | Literal["unknown"]

#: Weight of each verdict in `Audit.leak`.
LEAK: dict[str, float] = {"nothing": 0.0, "signs": 0.5, "unknown": 1.0, "weights": 1.0}


_SAID = {"signs": "signs of", "weights": "weights of", "unknown": "the audit cannot tell for"}
_ANSWERS = {True: "yes", False: "no", None: "-"}


class LayerAudit(str):
    """A layer's verdict (`nothing`, `signs`, `weights` or `unknown`) as a string, with the details as attributes.

    Attributes:
        upstream: whether any gradient flows upstream of the layer. If none does (in the first layer of
            a network on integer images), the verdict `nothing` has no meaning.
        share: share (0 to 1) of the gradient at the layer's input that still arrives when the feedback
            of all layers that read this input is zero. It came along an identity shortcut, or
            through a layer left on backpropagation.
        reason: the layer's rule, or the reason why it is left on backpropagation or cannot be judged.
        hears_own: whether each row of a direct layer hears the error of its own example; None if the layer has another
            rule, or if that cannot be told.
    """

    hears_own: bool | None
    share: float
    upstream: bool
    reason: str

    def __new__(
        cls,
        transports: Verdict,
        share: float = 0.0,
        upstream: bool = True,
        reason: str = "",
        hears_own: bool | None = None,
    ) -> LayerAudit:
        verdict = super().__new__(cls, transports)
        verdict.share, verdict.upstream, verdict.reason, verdict.hears_own = share, upstream, reason, hears_own
        return verdict


@dataclasses.dataclass(frozen=True)
class Audit:
    """Result of `audit`, which prints as a table.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), "usf")
        >>> found = biotorch.audit(model, torch.randn(4, 8))
        >>> found.leak, found.layers["2"], found.verdict
        (0.5, 'signs', 'signs of 0, 2: rule usf')
    """

    #: Verdict of each layer, by dotted name.
    layers: dict[str, LayerAudit]
    #: Residual blocks (layers, outside of known blocks) at whose input gradient arrives past the feedback,
    #: with its share (0 to 1). This is legitimate for rules that go backwards layer by layer, and a leak for
    #: direct rules under `shortcuts="keep"`.
    shortcuts: dict[str, float]
    #: Whether a layer has a direct rule, for which gradient past the feedback is a leak.
    direct: bool = False

    @property
    def leak(self) -> float:
        """Mean over the layers of 0 (nothing is transported), 0.5 (signs) or 1 (weights, or the audit cannot tell).

        Layers with nothing upstream are left out, unless there are no others.
        """
        verdicts = [verdict for verdict in self.layers.values() if verdict.upstream] or list(self.layers.values())
        return sum(LEAK[verdict] for verdict in verdicts) / len(verdicts)

    @property
    def verdict(self) -> str:
        """The leaks and their reasons, in one line."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, found in self.layers.items():
            if found != "nothing":
                groups.setdefault((str(found), found.reason), []).append(name)
        parts = [f"{_SAID[what]} {_some(names)}: {why}" for (what, why), names in groups.items()]
        share = max(self.shortcuts.values(), default=0.0)
        if share >= 0.005:
            why = (
                "identity paths and parallel branches, which shortcuts='keep' leaves"
                if self.direct
                else "identity paths and parallel branches, which the rule allows"
            )
            where = _some(list(self.shortcuts))
            parts.append(f"up to {share:.0%} of the gradient goes past the feedback at {where}: {why}")
        if strange := [name for name, found in self.layers.items() if found.hears_own is False]:
            parts.append(f"rows of {_some(strange)} hear the errors of other examples")
        return "; ".join(parts if any(groups) else ["nothing is transported", *parts])

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        titles = ["layer", "transports", "past feedback"] + ["own error"] * self.direct
        rows = [
            [
                name or "(root)",
                str(verdict) if verdict.upstream else "- (first)",
                f"{verdict.share:.1%}" if verdict.share else "-",
            ]
            + [_ANSWERS[verdict.hears_own]] * self.direct
            for name, verdict in self.layers.items()
        ]
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        table = [titles, ["-" * width for width in widths], *rows]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        counts = {kind: sum(verdict == kind for verdict in self.layers.values()) for kind in LEAK}
        total = len(self.layers)
        parts = {kind: "all" if count == total else f"{count} of" for kind, count in counts.items() if count}
        tally = ", ".join(
            f"{part} {total} layers {'cannot be judged' if kind == 'unknown' else f'transport {kind}'}"
            for kind, part in parts.items()
        )
        lines.append(f"leak {self.leak:.2f}: {tally}")
        if self.shortcuts:
            named = ", ".join(f"{name} ({share:.1%})" for name, share in self.shortcuts.items())
            lines.append(f"gradient goes past the feedback at the input of {named}")
        lines.append(self.verdict)
        return "\n".join(lines)


def _some(names: list[str]) -> str:
    shown = ", ".join(name or "(root)" for name in names[:2])
    return shown if len(names) <= 2 else f"{len(names)} layers ({shown} ...)"
