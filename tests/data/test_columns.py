"""Tables: roles of columns, standardisation on the training split alone, categories, missing values, refusals."""

import gzip
import json
import re

import numpy as np
import pandas
import pytest
import torch
from pydantic import ValidationError

from biotorch import _seeding, data
from biotorch.errors import NotEnoughMemoryError

ROWS = 100
TEST = 20  # a fifth
HELD_OUT = 8  # a tenth of the rest


def frame(**changed):
    """Numbers, integers, texts, booleans, and a text to predict; `changed` replaces columns or adds some."""
    draw = np.random.default_rng(0)
    columns = {
        "age": draw.normal(40, 10, ROWS),
        "rooms": draw.integers(0, 5, ROWS),
        "city": draw.choice(["a", "b", "c"], ROWS),
        "owner": draw.random(ROWS) > 0.5,
        "price": draw.normal(200, 50, ROWS),
        "label": draw.choice(["yes", "no"], ROWS),
    }
    return pandas.DataFrame({**columns, **changed})


def with_gaps(name, rows, value=None):
    column = frame()[name].astype(object if value is None else float)
    column[rows] = value
    return {name: column}


def load(table, folder, seed=0, name="set.csv", **keys):
    path = folder / name
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    else:
        path.write_text(table.to_csv(index=False))
    return data.load(data.DataConfig(dataset=f"table:{path}", **{"target": "label", **keys}), seed)


def rows_of(seed=0):
    """Numbers of the rows for training, validation and test, by the documented way of choosing them."""
    order = torch.randperm(ROWS, generator=_seeding.generator(0))
    kept, test = order[torch.arange(ROWS) % 5 != 0], order[::5]
    inner = torch.randperm(len(kept), generator=_seeding.generator(_seeding.derive(seed, "validation split")))
    return kept[inner[HELD_OUT:]].numpy(), kept[inner[:HELD_OUT]].numpy(), test.numpy()


def everything(loaded):
    """Inputs and labels of the three splits."""
    for split in (loaded.train, loaded.validation, loaded.test):
        inputs, labels = next(split.in_order(ROWS))
        yield inputs.numpy(), labels.numpy()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["set.csv", "set.csv.gz", "set.parquet"])
def test_inputs_are_numbers_standardised_on_the_training_rows_and_then_indicators(tmp_path, name, seed):
    table = frame()
    loaded = load(table, tmp_path, seed, name)
    parts = rows_of(seed)
    assert sorted(np.concatenate(parts)) == list(range(ROWS))
    numbers = table[["age", "rooms", "price"]].to_numpy(float)
    mean, std = numbers[parts[0]].mean(0), numbers[parts[0]].std(0)
    for (inputs, labels), rows in zip(everything(loaded), parts, strict=True):
        np.testing.assert_allclose(inputs[:, :3], (numbers[rows] - mean) / std, atol=1e-6)
        np.testing.assert_array_equal(inputs[:, 3:6], table["city"].to_numpy()[rows, None] == np.array(["a", "b", "c"]))
        np.testing.assert_array_equal(inputs[:, 6:], table["owner"].to_numpy()[rows, None] == np.array([False, True]))
        assert inputs.dtype == np.float32
        assert labels.tolist() == [["no", "yes"].index(label) for label in table["label"][rows]]
    assert (loaded.kind, loaded.task, loaded.num_outputs, loaded.input_shape) == ("table", "classification", 2, (8,))
    assert (loaded.mean, loaded.target_mean, loaded.target_std) == ((), (), ())
    record = json.loads(json.dumps(loaded.record))
    assert record["numbers"] == ["age", "rooms", "price"]
    assert record["categories"] == {"city": ["a", "b", "c"], "owner": ["False", "True"]}
    assert (record["class_names"], record["imputed"]) == (["no", "yes"], {})


def test_targets_of_a_regression_are_standardised_on_the_training_rows(tmp_path):
    table = frame()
    loaded = load(table, tmp_path, target=["price", "rooms"], ignore=["label"])
    parts, targets = rows_of(), table[["price", "rooms"]].to_numpy(float)
    mean, std = targets[parts[0]].mean(0), targets[parts[0]].std(0)
    for (inputs, labels), rows in zip(everything(loaded), parts, strict=True):
        np.testing.assert_allclose(labels, (targets[rows] - mean) / std, atol=1e-6)
        assert (labels.dtype, inputs.shape[1]) == (np.float32, 1 + 3 + 2)
    np.testing.assert_allclose([loaded.target_mean, loaded.target_std], [mean, std])
    assert (loaded.task, loaded.num_outputs, loaded.train.per_token) == ("regression", 2, False)
    assert loaded.record["targets"] == ["price", "rooms"]
    assert loaded.record["target_mean"] == list(loaded.target_mean)


@pytest.mark.parametrize(
    ("target", "task", "outputs"),
    [
        ("price", None, 1),
        ("rooms", "regression", 1),
        ("rooms", None, ["0", "1", "2", "3", "4"]),
        ("owner", None, ["False", "True"]),
        ("city", None, ["a", "b", "c"]),
        ("whole", "classification", ["-1", "1"]),
    ],
)
def test_the_target_shows_the_task_unless_it_is_given(tmp_path, target, task, outputs):
    loaded = load(frame(whole=[-1.0, 1.0] * (ROWS // 2)), tmp_path, target=target, task=task)
    classes = isinstance(outputs, list)
    assert loaded.task == ("classification" if classes else "regression")
    assert loaded.record.get("class_names", loaded.num_outputs) == outputs
    assert loaded.num_outputs == (len(outputs) if classes else outputs)


def test_missing_values_become_the_mean_or_the_most_frequent_category_of_the_training_rows(tmp_path):
    train, validation, test = rows_of()
    gaps = [train[3], validation[1], test[2]]
    table = frame(**with_gaps("age", gaps, np.nan), **with_gaps("city", gaps))
    loaded = load(table, tmp_path, missing="impute")
    common = table["city"].iloc[train].mode()[0]
    mean, std = table["age"].iloc[train].mean(), table["age"].iloc[train].std(ddof=0)
    for (inputs, _), rows in zip(everything(loaded), (train, validation, test), strict=True):
        (gap,) = np.flatnonzero(np.isin(rows, gaps))
        assert inputs[gap, 0] == pytest.approx(0, abs=1e-6)
        assert inputs[gap, 3:6].tolist() == [float(each == common) for each in "abc"]
        others = np.delete(np.arange(len(rows)), gap)
        np.testing.assert_allclose(inputs[others, 0], (table["age"].iloc[rows[others]] - mean) / std, atol=1e-6)
    assert loaded.record["imputed"] == {"age": 3, "city": 3}


def test_what_the_training_rows_do_not_show_is_zero(tmp_path):
    _, validation, test = rows_of()
    elsewhere = np.isin(np.arange(ROWS), [validation[0], test[0]])
    table = frame(rare=np.where(elsewhere, "z", "y"), constant=np.where(elsewhere, 1000.0, 0.1))
    loaded = load(table, tmp_path, columns=["rare", "constant"])
    assert loaded.record["categories"] == {"rare": ["y", "z"]}
    for inputs, _ in everything(loaded):
        assert not inputs[:, [0, 2]].any()
    assert next(loaded.test.in_order(ROWS))[0][:, 1].tolist() == [0.0] + [1.0] * (TEST - 1)


def test_columns_are_chosen_and_integers_can_be_categories(tmp_path):
    table = frame()
    chosen = load(table, tmp_path, columns=["rooms", "age"], categorical=["rooms"], standardise=False)
    assert (chosen.record["numbers"], chosen.record["categories"]) == (["age"], {"rooms": list("01234")})
    train = rows_of()[0]
    inputs, _ = next(chosen.train.in_order(ROWS))
    np.testing.assert_allclose(inputs[:, 0], table["age"][train], rtol=1e-6)
    assert inputs[:, 1:].argmax(1).tolist() == table["rooms"][train].tolist()
    assert load(table, tmp_path, ignore=["city", "owner", "price"]).record["numbers"] == ["age", "rooms"]


def test_a_file_for_the_test_is_prepared_with_the_training_table(tmp_path):
    table = frame()
    test = table.iloc[:TEST].assign(city="elsewhere", age=table["age"] + 1)
    (tmp_path / "test.csv").write_text(test.to_csv(index=False))
    loaded = load(table, tmp_path, test=str(tmp_path / "test.csv"))
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [90, 10, TEST]
    (train, _), _, (inputs, _) = everything(loaded)
    assert not inputs[:, 3:6].any()
    np.testing.assert_allclose(train.mean(0)[:3], 0, atol=1e-6)
    scale = np.ptp(inputs[:, 0]) / np.ptp(test["age"])
    assert inputs[0, 0] - inputs[1, 0] == pytest.approx((test["age"][0] - test["age"][1]) * scale, rel=1e-4)
    before = loaded.record["preparation"]
    assert load(table, tmp_path).record["preparation"] != before  # fewer rows for training, other means
    (tmp_path / "test.csv").write_text(test.assign(label="maybe").to_csv(index=False))
    with pytest.raises(data.DataError, match=r"test\.csv: 'label' is 'maybe' in some rows.*its classes: no, yes"):
        load(table, tmp_path, test=str(tmp_path / "test.csv"))
    (tmp_path / "test.csv").write_text(test.drop(columns=["age"]).to_csv(index=False))
    with pytest.raises(data.DataError, match=r"test\.csv lacks the columns 'age'"):
        load(table, tmp_path, test=str(tmp_path / "test.csv"))


@pytest.mark.parametrize(
    ("changed", "keys", "message"),
    [
        (
            with_gaps("age", [3, 4], np.nan) | with_gaps("city", [5]),
            {},
            r"'age' lacks a value in 2 of 100 rows; 'city'",
        ),
        (with_gaps("label", [3]), {"missing": "impute"}, r"'label' lacks a value in 1 of 100 rows\. Remove these"),
        (with_gaps("price", [3], np.inf), {"target": "price"}, r"'price' is infinite in 1 of 100 rows"),
        ({"age": with_gaps("age", [3], -np.inf)["age"]}, {}, r"'age' is infinite in 1 of 100 rows"),
        ({"day": pandas.date_range("2020-01-01", periods=ROWS)}, {}, r"'day' holds dates or times: leave it out"),
        ({"label": pandas.date_range("2020-01-01", periods=ROWS)}, {}, r"'label' is the target, but holds dates"),
        ({"who": [f"p{row}" for row in range(ROWS)]}, {}, r"'who' has 100 different values, as names and identifiers"),
        ({"row": np.arange(7, 7 + ROWS)}, {}, r"'row' numbers the rows: leave it out with data\.ignore"),
        ({"power": ["?", *map(str, range(1, ROWS))]}, {}, r"'power' holds numbers, but also '\?'"),
        ({"void": [None] * ROWS}, {}, r"'void' has no values"),
        ({}, {"target": "lable"}, r"data\.target: unknown column 'lable'\. Did you mean 'label'"),
        ({}, {"ignore": ["ages"]}, r"data\.ignore: unknown column 'ages'\. Did you mean 'age'"),
        ({}, {"categorical": ["age"]}, r"'age' holds fractions: take it out of data\.categorical"),
        ({}, {"target": "city", "task": "regression"}, r"'city' is the target of a regression, but holds texts"),
        ({}, {"target": "price", "task": "classification"}, r"'price' holds fractions, which are no classes"),
        ({"price": np.arange(ROWS) ** 2}, {"target": "price"}, r"'price' has 100 different values: set data\.task"),
        ({"label": "yes"}, {}, r"'label' is 'yes' in all rows, so there is nothing to predict"),
        ({"price": 7.5}, {"target": "price"}, r"target 'price' is 7\.5 in all examples of the training split"),
        ({"age": np.linspace(-1e300, 1e300, ROWS)}, {}, r"'age' has too large values"),
        ({"age": np.linspace(-1e300, 1e300, ROWS)}, {"target": "age"}, r"target 'age' has too large values"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, changed, keys, message):
    with pytest.raises(data.DataError, match=rf"set\.csv.*{message}"):
        load(frame(**changed), tmp_path, **keys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b,a\n1,2,3\n", r"more than one column of the name 'a'"),
        ("a.csv", b"a,b\n1,2,3\n4,5,6\n", r"rows with more values than its first line has names"),
        ("a.csv", b"a,b\n1,2\n4,5,6\n", r"cannot be read as a table .*line 3"),
        ("a.csv", b"a;b\n1;2\n", r"only the column 'a;b': separate values by commas, not by ';'"),
        ("a.csv", b"1,2\n3,4\n", r"no names of columns in its first line"),
        ("a.csv", b"", r"cannot be read as a table"),
        ("a.csv", b"a,b\n", r"has no rows"),
        ("a.csv", b"a,b\n\xe9,1\n", r"is not a text in UTF-8"),
        ("a.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 99, mtime=0)[:-9], r"cannot be read as a table"),
        ("a.parquet", b"PAR1" + b"\0" * 99, r"is not a complete parquet file"),
        ("a.txt", b"a,b\n1,2\n", r"must be a file whose name ends in \.csv, \.csv\.gz, \.parquet"),
    ],
)
def test_files_that_are_no_tables_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=rf"{re.escape(name)} .*{message}|{re.escape(name)} {message}"):
        data.load(data.DataConfig(dataset=f"table:{tmp_path / name}", target="b"), 0)


def test_a_compressed_table_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("biotorch._memory.available", lambda: 10**4)
    with pytest.raises(NotEnoughMemoryError, match=r"set\.csv\.gz would take .* GiB of memory"):
        load(frame(), tmp_path, name="set.csv.gz")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"target: missing; name the column"),
        ({"target": "a", "columns": ["a", "b"]}, r"columns: 'a' cannot also be the target"),
        ({"target": ["a", "b", "a"]}, r"target: names 'a' more than once"),
        ({"target": "a", "columns": ["b"], "ignore": ["c"]}, r"ignore: data\.columns names all inputs"),
        ({"target": "a", "columns": ["b"], "categorical": ["c"]}, r"categorical: 'c' is no input"),
    ],
)
def test_roles_that_collide_are_refused_before_the_file_is_read(keys, message):
    with pytest.raises(ValidationError, match=message):
        data.DataConfig(dataset="table:none.csv", **keys)


@pytest.mark.parametrize(
    ("name", "sizes", "width", "outputs", "first"),
    [
        ("wine", [114, 28, 36], 13, ["class_0", "class_1", "class_2"], "alcohol"),
        ("breast_cancer", [364, 91, 114], 30, ["benign", "malignant"], "mean_radius"),
        ("diabetes", [282, 71, 89], 10, ["progression"], "age"),
    ],
)
def test_embedded_tables(name, sizes, width, outputs, first):
    loaded = data.load(data.DataConfig(dataset=name), seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == sizes
    assert loaded.input_shape == (width,)
    assert loaded.record.get("class_names", loaded.record.get("targets")) == outputs
    assert loaded.record["numbers"][0] == first
    labels = torch.cat([split.labels for split in (loaded.train, loaded.validation, loaded.test)])
    if name == "diabetes":  # mean of all 442 targets, as in Efron et al. (2004)
        original = labels.double() * loaded.target_std[0] + loaded.target_mean[0]
        assert original.mean().item() == pytest.approx(152.1335, abs=1e-3)
    else:
        assert labels.bincount().tolist() == {"wine": [59, 71, 48], "breast_cancer": [357, 212]}[name]


def test_another_column_of_an_embedded_table_can_be_predicted():
    assert data.load(data.DataConfig(dataset="wine", target="alcohol"), seed=0).record["targets"] == ["alcohol"]
