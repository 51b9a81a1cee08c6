"""Figures for notebooks, each in one call: the figures of the reports, and pictures of weights.

Every function returns a new matplotlib `Figure`. pyplot does not know it, and no setting of matplotlib changes. A
notebook shows the figure if it is the value of a cell's last line; `figure.savefig("name.pdf")` writes it to a file.

The functions for measured runs take a `source`, which is one of these:

- the folder of a run, of a study, or a folder that contains several of them;
- a frame of `biotorch.results.load`, or some of its rows;
- a history: a list with one record (a dictionary) per measurement, oldest first. `biotorch.training.fit` returns one.
  Your own loop can fill one under these keys: `angles` (from `metrics.alignment_angles`), `gradient_angles` (from
  `metrics.gradient_alignment`), `norm_ratios` (from `metrics.norm_ratios`), `train` and `validation` (each
  `{"error": percent}`);
- several histories by rule, `{"fa": history, "dfa": history}`; a list of histories in the place of one holds one for
  each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import metrics
from biotorch._names import unknown
from biotorch.layers import Connection, connections
from biotorch.models.outputs import main_output
from biotorch.report.angles import draw_angles, draw_depth, draw_layers
from biotorch.report.examples import draw_examples
from biotorch.report.figures import draw_learning
from biotorch.report.notebook import Source, Studies, runs_of, shown, studies_of, titled
from biotorch.report.robustness import draw_black_box, draw_white_box
from biotorch.report.weights import draw_filters, draw_scatter, draw_similarity
from biotorch.results.groups import method
from biotorch.robustness import Outcome

#: Largest number of panels of a scatter figure that shows all layers.
_PANELS = 12
_RECORDED = (
    "training.metrics in a configuration chooses what a run records (weight_alignment, weight_ratio, "
    "gradient_alignment); in a loop of your own, put it into the records"
)
_ATTACKED = "`biotorch attack RUN` makes a study of a run"


# Measured runs -----------------------------------------------------------------------------------


def angles(source: Source, x: str = "epoch") -> Figure:
    """Angles of the hidden layers over time: alignment angle (W to B), gradient angle (rule's to true gradient).

    Each rule has a line, the mean over the layers, and a thin line for the worst of them. With several seeds lines are
    means over the seeds, and a band shows the standard deviation.

    Args:
        source: runs with `angles` or `gradient_angles`, see the module.
        x: label of the time axis. Records of your own loop need not be epochs.

    Raises:
        ValueError: the source has none of these angles, or is no source.
    """
    return shown(draw_angles(runs_of(source)), f"no run has `angles` or `gradient_angles`; {_RECORDED}", x)


def layers(source: Source, rule: str | None = None, x: str = "epoch") -> Figure:
    """Alignment angle (W to B) and norm ratio |B| / |W| of every layer over time, under one rule.

    Args:
        source: runs with `angles` or `norm_ratios`, see the module.
        rule: the rule to show; needed if the source has several.
        x: label of the time axis. Records of your own loop need not be epochs.

    Raises:
        ValueError: the source has none of these figures, no run of this rule, or several rules of which none is chosen.
    """
    runs = runs_of(source)
    rules = list(dict.fromkeys(map(method, runs)))
    if rule is None and len(rules) > 1:
        raise ValueError(f"rule: choose one of {', '.join(rules)}")
    if rule is not None and rule not in rules:
        raise unknown("rule of these runs", rule, rules)
    return shown(draw_layers(runs, rule or rules[0]), f"no run has `angles` or `norm_ratios`; {_RECORDED}", x)


def depth(source: Source) -> Figure:
    """Gradient angle (rule's gradient to true gradient) of every layer in the last record, from input to output.

    Each rule has a line.

    Args:
        source: runs with `gradient_angles`, see the module.

    Raises:
        ValueError: the source has no gradient angles, or is no source.
    """
    return shown(draw_depth(runs_of(source)), f"no run has `gradient_angles`; {_RECORDED}")


def errors(source: Source, x: str = "epoch") -> Figure:
    """Learning curves: the error on the validation set, and thin on the training set; of a regression the loss.

    Args:
        source: runs with at least two records with `validation`, see the module.
        x: label of the time axis. Records of your own loop need not be epochs.

    Raises:
        ValueError: the source has fewer, or is no source.
    """
    runs = [run for run in runs_of(source) if run["history"] and run["history"][-1].get("validation")]
    return shown(draw_learning(runs), "no run has at least two records with `validation`", x)


# Robustness --------------------------------------------------------------------------------------


def white_box(source: Studies, title: str = "") -> Figure:
    """Accuracy over epsilon under attacks along the feedback gradient (top) and along the true gradient (bottom).

    Args:
        source: a folder or a frame of runs that `biotorch attack` has attacked, or studies of
            `biotorch.robustness.study` by rule: `{"fa": study}`.
        title: title of a figure of studies by rule.

    Raises:
        ValueError: the source has no such attack, or is no source.
    """
    return titled(
        shown(draw_white_box(studies_of(source)), f"no study has an attack along a gradient; {_ATTACKED}"),
        source,
        title,
    )


def black_box(source: Studies, title: str = "") -> Figure:
    """Accuracy over epsilon, or over the number of changed pixels, under attacks that see only outputs.

    Args:
        source, title: as in `white_box`.

    Raises:
        ValueError: the source has no such attack, or is no source.
    """
    return titled(
        shown(draw_black_box(studies_of(source)), f"no study has a black-box attack; {_ATTACKED}"), source, title
    )


def examples(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    outcome: Outcome,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Sheet of adversarial examples: image, magnified perturbation, adversarial image, with what the network sees.

    Args:
        model: the attacked network, which maps images in [0, 1] to outputs (n, classes).
        images: (n, C, H, W) in [0, 1], where C is 1 or 3.
        labels: (n,) int64.
        outcome: result of `attack.run(images, labels)`.
        names: names of the classes; default: their numbers.
        title: title of the sheet.
    """
    with torch.no_grad():
        before, after = (main_output(model(each)).argmax(1) for each in (images, outcome.adversarial))
    return shown(draw_examples(images, outcome.adversarial, labels, before, after, names, title))


# Networks ----------------------------------------------------------------------------------------


def scatter(model: nn.Module, names: Sequence[str] | None = None) -> Figure:
    """Entries of B against the same entries of W, with one panel and the alignment angle (W to B) for each layer.

    Args:
        model: a converted network.
        names: dotted names of the layers to show; default: the first twelve.

    Raises:
        ValueError: a name is unknown, or no layer has a B in the shape of its W. Direct rules have none.
    """
    found = _connections(model)
    chosen = {name: _named(found, name) for name in names} if names is not None else found
    pairs = {
        name: (each.weight.detach(), effective.detach())
        for name, each in chosen.items()
        if (effective := each.effective_feedback) is not None
    }
    if not pairs:
        raise ValueError(
            "model: no layer has a B in the shape of its W; convert the network to a rule that has one, such as fa"
        )
    return shown(draw_scatter(dict(list(pairs.items())[: _PANELS if names is None else None])))


def filters(
    model: nn.Module,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    *,
    layer: str | None = None,
    units: int = 10,
    shape: Sequence[int] | None = None,
) -> Figure:
    """Filters of a layer as pictures, one column per unit: W, B, and for a batch the rule's update and the true one.

    Under a direct rule, B has one picture per output of the network. The B of a first layer carries the error to the
    input of the network. No weight learns from it, only attacks along the feedback gradient use it.

    Args:
        model: a converted network.
        batch: inputs and targets on which to measure the updates. An update is the negative gradient of W.
        loss: function called as `loss(model(inputs), targets)`, which returns a scalar.
        layer: dotted name of the layer; default: the first.
        units: largest number of columns.
        shape: shape (C, H, W) or (H, W) of the filters of a linear layer. By default they have the shape of the inputs
            of `batch` if these have as many values, and else are squares.

    Raises:
        ValueError: the layer is unknown or does not learn, or its filters are no pictures.
    """
    found = _connections(model)
    name = next(iter(found)) if layer is None else layer
    connection = _named(found, name)
    weight, feedback = connection.weight.detach(), connection.effective_feedback
    rows = {"W": weight}
    if feedback is not None:
        rows["B"] = feedback.detach()
    elif connection.feedback is not None:
        rows["B, by output"] = connection.feedback.detach()
    if batch is not None:
        gradients = metrics.gradients(model, loss, *batch)
        if name not in gradients:
            raise ValueError(f"layer: {name!r} gets no gradient on this batch")
        rows |= {
            key: -connection.layer.orient(gradient)
            for key, gradient in zip(("update", "true update"), gradients[name], strict=True)
        }
        shape = batch[0].shape[1:] if shape is None and batch[0][0].numel() == weight[0].numel() else shape
    return shown(draw_filters(rows, name, units, shape))


def similarity(
    first: nn.Module, second: nn.Module, inputs: Tensor, names: tuple[str, str] = ("first network", "second network")
) -> Figure:
    """Map of the linear CKA (`metrics.cka`) between every layer of one network and every layer of another.

    Args:
        first, second: two networks of any architecture, converted or not.
        inputs: examples for both networks; some hundred are enough.
        names: names of the networks at the axes.
    """
    rows, columns = (metrics.representations(each, inputs) for each in (first, second))
    values = [[metrics.cka(row, column) for column in columns.values()] for row in rows.values()]
    return shown(draw_similarity(values, list(rows), list(columns), names))


def _connections(model: nn.Module) -> dict[str, Connection]:
    found = connections(model)
    if not found:
        raise ValueError("model: it has no layer under a rule; convert it first, with biotorch.convert(model, rule)")
    return found


def _named(found: Mapping[str, Connection], name: str) -> Connection:
    if name not in found:
        raise unknown("layer", name, found)
    return found[name]


__all__ = [
    "Source",
    "Studies",
    "angles",
    "black_box",
    "depth",
    "errors",
    "examples",
    "filters",
    "layers",
    "scatter",
    "similarity",
    "white_box",
]
