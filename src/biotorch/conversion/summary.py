"""`summary`, a table of the layers of a network with the rule of each."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from biotorch.conversion.forms import leaking_shortcuts
from biotorch.conversion.survey import Kind, owned_modules, survey, weight_matrices
from biotorch.layers import FeedbackLayer
from biotorch.rules.base import IMPERFECTIONS


@dataclasses.dataclass(frozen=True)
class Row:
    """One module with parameters. `rule` is None if no rule computes its input gradient; `note` says why."""

    name: str
    type: str
    kind: Kind
    rule: str | None
    parameters: int
    #: Shape of B for each weight matrix.
    feedback: tuple[tuple[int, ...], ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of `summary(model)`, which prints as a table.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> found = biotorch.summary(biotorch.convert(model, {"0": "fa", "2": None}))
        >>> [row.name for row in found.left], found.feedback_bytes
        (['2'], 192)
    """

    rows: list[Row]
    #: Residual blocks whose identity path carries gradient past the feedback of a direct rule.
    leaking_shortcuts: list[str]
    #: Number of elements of all B, divided by the number of elements of all other parameters.
    feedback_ratio: float
    #: Memory in bytes of all B (`feedback_bytes`) and of all other parameters (`parameter_bytes`).
    feedback_bytes: int
    parameter_bytes: int

    @property
    def left(self) -> list[Row]:
        """Rows of the modules that stay on backpropagation and transport their weights."""
        return [row for row in self.rows if row.kind in ("convertible", "left")]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        header = ("layer", "type", "rule", "parameters", "feedback B", "note")
        cells = [
            (
                row.name or "(root)",
                row.type,
                row.rule or "-",
                f"{row.parameters:,}",
                ", ".join("x".join(map(str, shape)) or "scalar" for shape in row.feedback) or "-",
                row.note,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in [header, tuple("-" * width for width in widths), *cells]
        ]
        megabytes = f"{self.feedback_bytes / 2**20:,.1f} MiB beside {self.parameter_bytes / 2**20:,.1f} MiB"
        lines.append(f"feedback weights: {self.feedback_ratio:.2f} times the parameters ({megabytes})")
        if self.left:
            lines.append(f"{len(self.left)} layer(s) on plain backpropagation: see the notes")
        if self.leaking_shortcuts:
            lines.append(
                f"{len(self.leaking_shortcuts)} identity shortcut(s) carry gradient past the direct feedback "
                "(shortcuts='keep'); biotorch.audit measures how much"
            )
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """List the modules of `model` that have parameters, with the rule of each.

    A converted layer shows its rule. A plain layer that would transport its weights shows `backpropagation`,
    with the reason why it is not converted as a note. Normalisation and embeddings show `-`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> print(biotorch.summary(biotorch.convert(model, "fa")))
        layer  type    rule  parameters  feedback B  note
        -----  ------  ----  ----------  ----------  ----
        0      Linear  fa    54          6x8
        2      Linear  fa    21          3x6
        feedback weights: 0.88 times the parameters (0.0 MiB beside 0.0 MiB)
    """
    rows, held = [], dict[int, Tensor]()
    for entry in survey(model):
        module, shapes = entry.module, []
        rule, note = ("backpropagation", entry.reason) if entry.kind == "left" else (None, entry.reason)
        if isinstance(module, FeedbackLayer):
            frozen = module.rule.trains_output_only and not any(p.requires_grad for p in module.parameters())
            rule = module.rule.name
            distorted = [f"{each} {value}" for each in IMPERFECTIONS if (value := getattr(module.rule, each))]
            note = "output layer" if module.output is not None else "frozen" if frozen else ", ".join(distorted)
            shared = module._buffers.get("shared_feedback")
            tensors = [shared, *(tensor for each in module.connections for tensor in each.tensors.values())]
            held.update((id(tensor), tensor) for tensor in tensors if tensor is not None)
            shapes = [shape for each in module.connections if (shape := each.feedback_shape) is not None]
        elif entry.kind == "convertible":
            rule, note = "backpropagation", "plain PyTorch, not converted"
        owners = [module, *owned_modules(module)]
        held_here = [p for owner in owners for p in owner._parameters.values() if p is not None]
        own = {id(p): p for p in held_here if not nn.parameter.is_lazy(p) and id(p) not in held}
        own.update((id(p), p) for p in weight_matrices(module).values())  # a parametrized layer keeps W elsewhere
        count = sum(p.numel() for p in own.values())
        rows.append(Row(entry.name, type(module).__name__, entry.kind, rule, count, tuple(shapes), note))
    parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p) and id(p) not in held]
    total = sum(p.numel() for p in parameters)
    return Summary(
        rows,
        leaking_shortcuts(model),
        sum(b.numel() for b in held.values()) / total if total else 0.0,
        sum(b.nbytes for b in held.values()),
        sum(p.nbytes for p in parameters),
    )
