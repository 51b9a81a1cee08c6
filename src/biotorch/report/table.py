"""The headline table: error by rule, mean ± std over seeds, beside the angles it learned with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from biotorch.experiment.results import Result
from biotorch.report.groups import by_configuration, label, mean_angle
from biotorch.tables import Table

#: Figures of a split, as the table's head has them.
_HEADS = {"error": "error (%)", "perplexity": "perplexity"}


def table(results: Sequence[Result]) -> Table:
    """One row per configuration, over its seeds; with perplexities, where there are any.

    Angles are means over layers, before training -> after the last epoch. Weight alignment is the angle
    between W and B (direct rules have none); gradient alignment that between update and true gradient.
    """
    groups = by_configuration(results)
    split = "test" if all(result["test"] for result in results) else "validation"
    figures = [name for name in ("error", "perplexity") if any(name in result[split] for result in results)]
    rows = [
        [
            label(group, groups),
            *(_spread([result[split].get(name) for result in group]) for name in figures),
            _change(group, "angles"),
            _change(group, "gradient_angles"),
            str(len(group)),
        ]
        for group in groups
    ]
    config, environment = results[0]["config"], results[0]["environment"]
    training = config["training"]
    what = f"{training['hyperparameters']['epochs']} epochs" if training else "evaluation"
    return Table(
        title=f"{config['model']['architecture']} on {config['data']['dataset']}, {what}",
        header=[
            "rule",
            *(f"{split} {_HEADS[name]}" for name in figures),
            "weight alignment (°)",
            "gradient alignment (°)",
            "n",
        ],
        rows=rows,
        notes=[
            "Mean ± standard deviation over n seeds. Angles: mean over layers, before → after training.",
            *(["The best epoch was chosen on the test set."] if config["data"]["validation"] == "test" else []),
            f"biotorch {environment['biotorch']} ({environment['commit'] or 'no commit'}), "
            f"torch {environment['torch']}, {environment['device']}, {environment['threads']} threads.",
        ],
    )


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:.2f}"
    return f"{statistics.fmean(known):.2f} ± {statistics.stdev(known):.2f}"


def _change(group: Sequence[Result], key: str) -> str:
    first = [angle for result in group if (angle := mean_angle(result, key, 0)) is not None]
    last = [angle for result in group if (angle := mean_angle(result, key, -1)) is not None]
    if not first or not last:
        return "-"
    return f"{statistics.fmean(first):.0f} → {statistics.fmean(last):.0f}"
