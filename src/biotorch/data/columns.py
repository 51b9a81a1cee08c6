"""Roles of the columns of a table: numbers, categories, and columns to predict."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from biotorch import _memory
from biotorch._names import unknown
from biotorch.data.features import Features, Rows, codes, names_of
from biotorch.data.splits import Task, fifth
from biotorch.data.tables import Table
from biotorch.errors import DataError

#: Largest number of categories of a column, and the number up to which a column has few whatever its length is. A
#: column with more, or with one for every second row, holds names or identifiers.
_MOST, _FEW = 256, 20
#: Our words for some of the kinds of values that `pandas.api.types.infer_dtype` knows.
_WORDS = {
    **dict.fromkeys(("floating", "mixed-integer-float", "decimal"), "float"),
    **dict.fromkeys(("string", "boolean", "categorical"), "category"),
    **dict.fromkeys(("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period"), "time"),
}
_NUMBERS = ("float", "integer")
_TOLD = {"category": "texts, booleans or categories", "time": "dates or times", "float": "fractions"}
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2})?.*")
#: Bytes of memory for a value.
_FOR_VALUE = 16
_CURE = (
    " Remove these rows, leave the columns out with data.ignore, or set data.missing: impute, which takes the mean "
    "or the most frequent category of the training split."
)
#: Largest number of problems that a message lists.
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Roles:
    """Purposes of the columns of a table, by the keys of the section `data`, which documents them."""

    target: Sequence[str]
    columns: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    categorical: Sequence[str] = ()
    missing: Literal["refuse", "impute"] = "refuse"
    task: Task | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Columns of numbers, categories by column, targets, and names of the classes; a regression has no classes."""

    numbers: list[str]
    categories: dict[str, tuple[str, ...]]
    targets: list[str]
    classes: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """Names of all columns that are inputs, in the order in which they are."""
        return [*self.numbers, *self.categories]


def features(table: Table, test: Table | None, roles: Roles, divided: bool) -> Features:
    """Features and labels of a table; if it is `divided`, a fifth of its rows is for the test, or left out for `test`.

    The categories of a column and the classes are all that `table` has. A category that only `test` has is unknown to
    the network; such a class is an error.

    Raises:
        DataError: columns are missing, or are no numbers and no categories, or values are missing or infinite; the
            message lists the columns.
    """
    plan = _plan(table, roles)
    width = len(plan.numbers) + sum(map(len, plan.categories.values()))
    _memory.require(_FOR_VALUE * width * len(table.frame), table.name)
    rows = _rows(table, plan, roles)
    train, held = (rows[index] for index in fifth(len(rows.labels))) if divided else (rows, None)
    if test is not None:
        held = _rows(test, plan, roles)
    if held is None or not len(held.labels):
        raise DataError(f"{table.name} has too few rows for a test set.")
    imputed: collections.Counter[str] = collections.Counter()
    for each in (table, test) if test is not None else (table,):
        imputed.update({name: int(each.frame[name].isna().sum()) for name in plan.inputs})
    record = {
        "numbers": plan.numbers,
        "categories": {name: list(names) for name, names in plan.categories.items()},
        **({"class_names": list(plan.classes)} if plan.classes else {"targets": plan.targets}),
        "imputed": {name: count for name, count in imputed.items() if count},
    }
    outputs = len(plan.classes or plan.targets)
    return Features(table.kind, table.name, train, held, outputs, tuple(plan.numbers), plan.categories, record)


def _plan(table: Table, roles: Roles) -> _Plan:
    frame, targets = table.frame, list(roles.target)
    named = {
        "target": targets,
        "columns": roles.columns or (),
        "ignore": roles.ignore,
        "categorical": roles.categorical,
    }
    for key, names in named.items():
        for name in names:
            if name not in frame.columns:
                raise DataError(f"{table.name}: data.{key}: {unknown('column', name, frame.columns)}")
    inputs = list(roles.columns or [name for name in frame.columns if name not in (*targets, *roles.ignore)])
    if not inputs:
        raise DataError(f"{table.name} has no columns besides {', '.join(map(repr, targets))} to predict it from.")
    _require(
        table, ((name, _problem(frame[name], roles.columns is not None, name in roles.categorical)) for name in inputs)
    )
    categories = {
        name: names_of(frame[name]) for name in inputs if name in roles.categorical or _held(frame[name]) == "category"
    }
    task = roles.task or ("regression" if len(targets) > 1 else None)
    _require(table, ((name, _target_problem(frame[name], task)) for name in targets))
    regression = task == "regression" or (task is None and _held(frame[targets[0]]) == "float")
    classes = () if regression else names_of(frame[targets[0]])
    if len(classes) == 1:
        raise DataError(f"{table.name}: {targets[0]!r} is {classes[0]!r} in all rows, so there is nothing to predict.")
    return _Plan([name for name in inputs if name not in categories], categories, targets, classes)


def _require(table: Table, problems: Iterator[tuple[str, str | None]], cure: str = "") -> None:
    """Raise DataError with the problems of columns and their cure, if there are any."""
    found = [f"{name!r} {problem}" for name, problem in problems if problem]
    if found:
        more = f"; and {len(found) - _LISTED} further columns" if len(found) > _LISTED else ""
        raise DataError(f"{table.name}: {'; '.join(found[:_LISTED])}{more}.{cure}")


def _held(column: Any) -> str:
    """Kind of values that a column holds besides missing ones: float, integer, category, time, or a word of pandas."""
    import pandas

    held = str(pandas.api.types.infer_dtype(column, skipna=True))
    if held == "string" and all(map(_DATE.fullmatch, column.dropna().unique())):
        return "time"
    return _WORDS.get(held, held)


def _problem(column: Any, chosen: bool, categorical: bool) -> str | None:
    """Reason why a column cannot be an input; `chosen` columns were named one by one."""
    held, values = _held(column), column.dropna()
    if not len(values):
        return "has no values: leave it out with data.ignore"
    if held not in (*_NUMBERS, "category"):
        return f"holds {_TOLD.get(held, f'{held} values')}: leave it out with data.ignore, or write numbers or texts"
    count = values.nunique()
    if categorical and held == "float" and (values % 1 != 0).any():
        return "holds fractions: take it out of data.categorical"
    if held == "category" and not categorical and (text := _text_among_numbers(values)) is not None:
        return f"holds numbers, but also {text!r}: leave missing values empty, or name it in data.categorical"
    if (held == "category" or categorical) and count > _bound(len(column)):
        return f"has {count:,} different values, as names and identifiers have: leave it out with data.ignore"
    consecutive = held == "integer" and len(column) == count == values.max() - values.min() + 1
    if consecutive and count > _FEW and not chosen and not categorical:
        return "numbers the rows: leave it out with data.ignore, or name all inputs in data.columns"
    return None


def _target_problem(column: Any, task: str | None) -> str | None:
    """Reason why a column cannot be predicted; `task` is None if the column has to show it."""
    held = _held(column)
    if held not in (*_NUMBERS, "category") or (task == "regression" and held == "category"):
        return f"is the target{f' of a {task}' if task else ''}, but holds {_TOLD.get(held, f'{held} values')}"
    count = column.nunique()
    if task == "classification" and held == "float" and (column.dropna() % 1 != 0).any():
        return "holds fractions, which are no classes: leave data.task out"
    if task is None and held != "float" and count > _bound(len(column)):
        return (
            f"has {count:,} different values: set data.task to regression if they are amounts, or to classification "
            "if they are classes"
        )
    return None


def _bound(rows: int) -> int:
    """Largest number of different values of a column of categories."""
    return min(_MOST, max(_FEW, rows // 2))


def _text_among_numbers(values: Any) -> str | None:
    """A text of a column that holds at least as many numbers as texts."""
    import pandas

    numbers = pandas.to_numeric(values, errors="coerce").notna()
    return None if numbers.mean() < 0.5 or numbers.all() else str(values[~numbers].iloc[0])


def _rows(table: Table, plan: _Plan, roles: Roles) -> Rows:
    """Encode the rows of a table. Raises DataError, which lists the columns, if they do not fit the plan."""
    frame = table.frame
    if lacking := [name for name in (*plan.inputs, *plan.targets) if name not in frame.columns]:
        raise DataError(f"{table.name} lacks the columns {', '.join(map(repr, lacking))}.")
    numeric = [*plan.numbers, *(() if plan.classes else plan.targets)]
    _require(table, ((name, _no_number(frame[name])) for name in numeric))
    if roles.missing == "refuse":
        _require(table, ((name, _lacking(frame[name])) for name in plan.inputs), _CURE)
    _require(table, ((name, _lacking(frame[name])) for name in plan.targets), " Remove these rows.")
    numbers = [frame[name].to_numpy(np.float64, na_value=np.nan) for name in plan.numbers]
    found = [codes(frame[name], names) for name, names in plan.categories.items()]
    count = len(frame)
    return Rows(
        np.stack(numbers, axis=1) if numbers else np.zeros((count, 0)),
        np.stack(found, axis=1) if found else np.zeros((count, 0), np.int64),
        _labels(table, plan),
    )


def _no_number(column: Any) -> str | None:
    """Reason why values of a column are no numbers; they may be of another file than the plan."""
    if (held := _held(column)) not in _NUMBERS and not column.isna().all():
        return f"must hold numbers, but holds {_TOLD.get(held, f'{held} values')}"
    infinite = int(np.isinf(column.to_numpy(np.float64, na_value=np.nan)).sum())
    return f"is infinite in {infinite:,} of {len(column):,} rows: correct or remove these rows" if infinite else None


def _lacking(column: Any) -> str | None:
    count = int(column.isna().sum())
    return f"lacks a value in {count:,} of {len(column):,} rows" if count else None


def _labels(table: Table, plan: _Plan) -> Tensor:
    if not plan.classes:
        return torch.from_numpy(table.frame[plan.targets].to_numpy(np.float64).copy())
    column = table.frame[plan.targets[0]]
    found = codes(column, plan.classes)
    if (strange := found == len(plan.classes)).any():
        raise DataError(
            f"{table.name}: {plan.targets[0]!r} is {column[strange].iloc[0]!r} in some rows, which is no class of the "
            f"training table; its classes: {', '.join(plan.classes[:_FEW])}."
        )
    return torch.from_numpy(found)
