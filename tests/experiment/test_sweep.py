"""Sweeps: which points there are, what each one sets, and what an override takes out of them."""

import re

import pytest
from config_cases import BASE, PAPER, flat, refused, write
from places import ROOT

from biotorch import models
from biotorch.experiment import read


def points(folder, sweep, *overrides):
    return read(write(folder, f"{BASE}sweep:\n{sweep}"), overrides).points


GRID = "  model.mode.type: [fa, dfa]\n  experiment.seed: [0, 1]\n"
CASES = """\
  model.mode.type:
    fa: {training.optimizer.lr: 0.3, training.optimizer.momentum: 0.9}
    dfa: {training.optimizer: {type: Adam, lr: 0.5}}
    usf:
"""


def test_the_sweep_is_the_grid_of_its_axes(tmp_path):
    found = points(tmp_path, GRID)
    assert list(found) == ["rule=fa,seed=0", "rule=fa,seed=1", "rule=dfa,seed=0", "rule=dfa,seed=1"]
    assert [(each.model.mode.type, each.experiment.seed) for each in found.values()] == [
        ("fa", 0), ("fa", 1), ("dfa", 0), ("dfa", 1),
    ]  # fmt: skip
    assert list(read(write(tmp_path)).points) == [""]


def test_named_cases_set_several_keys_and_an_axis_that_is_a_key_path_takes_the_name_of_the_case(tmp_path):
    sizes = "  size:\n    small: {training.hyperparameters.batch_size: 8, data.target_size: 28}\n    large:\n"
    found = points(tmp_path, CASES + sizes)
    assert list(found) == [f"rule={rule},size={size}" for rule in ("fa", "dfa", "usf") for size in ("small", "large")]
    for name, each in found.items():
        assert f"rule={each.model.mode.type}," in name
        small = name.endswith("small")
        assert (each.training.hyperparameters.batch_size, each.data.target_size) == ((8, 28) if small else (64, 32))


def test_the_values_of_a_point_never_leak_into_another(tmp_path):
    found = points(tmp_path, CASES)
    optimizers = {name: each.training.optimizer for name, each in found.items()}
    assert {name: (o.type, o.lr, o.model_extra) for name, o in optimizers.items()} == {
        "rule=fa": ("SGD", 0.3, {"momentum": 0.9}), "rule=dfa": ("Adam", 0.5, {}), "rule=usf": ("SGD", 0.1, {}),
    }  # fmt: skip


def test_what_the_sweep_sets_need_not_be_set_outside_of_it(tmp_path):
    text = BASE.replace("    lr: 0.1\n", "").replace("    type: fa\n", "    options: {init: xavier}\n")
    path = write(tmp_path, f"{text}sweep:\n  model.mode.type: [dfa]\n  training.optimizer.lr: {{0.5: {{}}, 1e-1: }}\n")
    found = read(path).points
    assert [each.training.optimizer.lr for each in found.values()] == [0.5, 0.1]
    assert all(
        each.model.mode.type == "dfa" and each.model.mode.options == {"init": "xavier"} for each in found.values()
    )


def test_a_mistake_at_a_point_is_told_once_with_its_line_and_point(tmp_path):
    sweep = "  model.mode.type: [fa, xa]\n  a:\n    x: {training.optimizer.momentun: 1}\n  experiment.seed: [0, 1]\n"
    problems = refused(write(tmp_path, f"{BASE}sweep:\n{sweep}"))
    lines = sorted(problems)
    assert len(lines) == 2, lines
    assert re.fullmatch(r"base\.yaml:18: model\.mode\.type: .*'xa'.*point.*model\.mode\.type is 'xa'\)", lines[0])
    assert re.match(r"base\.yaml:20: training\.optimizer\.momentun: .*Did you mean 'momentum'", lines[1]), lines


@pytest.mark.parametrize(
    ("override", "key"),
    [("sweep={traning.optimizer.lr: [1]}", "traning"), ("sweep={experiment.sed: [1]}", "experiment.sed"),
     ("sweep={model.mode.type: [xa]}", "model.mode.type"), ("sweep={a: {x: {data.datset: 3}}}", "data.datset")],
)  # fmt: skip
def test_a_mistake_in_a_sweep_of_an_override_is_told_at_the_override(tmp_path, override, key):
    problems = refused(write(tmp_path), override)
    assert [line.startswith(f"override {override}: {key}") for line in problems] == [True], problems


@pytest.mark.parametrize(
    "sweep",
    ["  experiment.seed: [1, 1]\n", "  training.optimizer.lr: [0.1, 1e-1]\n", "  experiment.seed: [1, 1.0]\n",
     "  data.dataset: ['folder:a/b', 'folder:a:b']\n", "  experiment.seed: []\n", "  experiment.seed: 3\n",
     "  experiment.seed: {}\n", "  method: [a, b]\n", "  method: {a: 3}\n", "  method: {a: [1]}\n",
     "  method: {a: {1: 2}}\n",
     "  3: {a: {}}\n", "  ~: {a: {}}\n", "  sweep.x: [1]\n", "  sweep: {a: {}}\n", "  a: {x: {sweep.b: [1]}}\n",
     "  '.': [1]\n", "  'experiment.': [1]\n", "  experiment.output_dir: [a, b]\n", "  experiment.name: [a, b]\n"],
)  # fmt: skip
def test_a_sweep_that_cannot_be_meant_is_refused_in_its_lines(tmp_path, sweep):
    problems = refused(write(tmp_path, f"{BASE}sweep:\n{sweep}"))
    assert problems
    assert all(line.startswith(("base.yaml:17", "base.yaml:18")) for line in problems), problems


@pytest.mark.parametrize("value", ["0", "false", "[]", "''"])
def test_a_sweep_that_is_no_mapping_is_refused_even_if_it_is_empty(tmp_path, value):
    assert refused(write(tmp_path), f"sweep={value}")


@pytest.mark.parametrize(
    "sweep",
    ["  method: {a: {experiment.seed: 9}}\n  experiment.seed: [0, 1]\n",
     "  a: {x: {experiment.seed: 9}}\n  b: {y: {experiment.seed: 8}}\n",
     "  training.optimizer.lr: [1, 2]\n  method: {a: {training.optimizer: {type: Adam, lr: 0.5}}}\n"],
)  # fmt: skip
def test_two_axes_that_set_the_same_key_are_refused(tmp_path, sweep):
    # One of them would win without a word, and the other's points would be the same run under two names.
    assert any(
        "experiment.seed" in line or "training.optimizer" in line
        for line in refused(write(tmp_path, f"{BASE}sweep:\n{sweep}"))
    )


@pytest.mark.parametrize(
    "sweep",
    ["  data.dataset: ['folder:/a/b', '../c.npz', 'x\\y.npz', 'hf:a/b']\n",
     "  method: {'../..': , 'a/b': , ' ': , '日本': }\n",
     "  model.checkpoint: ['.', '..', '/etc/passwd']\n", "  /tmp/x: {a: , b: }\n", "  a/b: {a: , b: }\n"],
)  # fmt: skip
def test_names_of_points_are_folders_below_that_of_the_study(tmp_path, sweep):
    study = read(write(tmp_path, f"{BASE}sweep:\n{sweep}"))
    for name in study.points:
        assert (study.folder / name).parent == study.folder, name
        assert name not in (".", "..")
        assert name.isprintable()


# Overrides ---------------------------------------------------------------------------------------


def test_an_override_takes_its_key_out_of_the_axes(tmp_path):
    found = points(tmp_path, GRID, "model.mode.type=usf")
    assert {name: each.model.mode.type for name, each in found.items()} == {"seed=0": "usf", "seed=1": "usf"}
    assert list(points(tmp_path, GRID, "model.mode.type=usf", "experiment.seed=5")) == [""]
    assert list(points(tmp_path, GRID, "sweep={}")) == list(points(tmp_path, GRID, "sweep=null")) == [""]


@pytest.mark.parametrize(("file", "rate"), [("cifar10/le_net_adam", 1e-4), ("imagenet/resnet18", 1e-3)])
def test_an_override_with_the_name_of_a_case_runs_that_case_with_what_it_sets(file, rate):
    study = read(ROOT / "configs" / "paper" / f"{file}.yaml", ["model.mode.type=dfa"])
    (config,) = study.points.values()
    assert (config.model.mode.type, config.training.optimizer.type, config.training.optimizer.lr) == (
        "dfa",
        "Adam",
        rate,
    )


def test_an_override_takes_its_key_out_of_the_cases(tmp_path):
    found = points(
        tmp_path, CASES.replace("    dfa: {training.optimizer: {type: Adam, lr: 0.5}}\n", ""), "training.optimizer.lr=7"
    )
    assert {name: each.training.optimizer.lr for name, each in found.items()} == {"rule=fa": 7, "rule=usf": 7}
    assert found["rule=fa"].training.optimizer.model_extra == {"momentum": 0.9}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [("training.optimizer.lr=7", "training.optimizer.lr", 7), ("model.mode={type: brsf}", "model.mode.type", "brsf"),
     ("training.optimizer={type: Adam, lr: 2}", "training.optimizer.lr", 2)],
)  # fmt: skip
def test_an_override_holds_at_every_point_whatever_the_sweep_says_above_or_below_it(tmp_path, override, key, value):
    found = points(tmp_path, CASES, override)
    assert {flat(each.model_dump())[tuple(key.split("."))] for each in found.values()} == {value}


def test_the_rate_of_the_papers_imagenet_can_be_overridden_for_all_rules():
    study = read(ROOT / "configs/paper/imagenet/resnet18.yaml", ["training.optimizer.lr=0.05"])
    assert {each.training.optimizer.lr for each in study.points.values()} == {0.05}


def test_an_override_can_give_the_sweep_or_a_case_of_it(tmp_path):
    assert list(points(tmp_path, GRID, "sweep={model.mode.type: [usf]}")) == ["rule=usf"]
    found = points(tmp_path, "  method: {a: {training.optimizer.lr: 3}}\n", "sweep.method.b={training.optimizer.lr: 4}")
    assert {name: each.training.optimizer.lr for name, each in found.items()} == {"method=a": 3, "method=b": 4}


# The paper's tables ------------------------------------------------------------------------------

RULES = ["backpropagation", "fa", "dfa", "usf", "brsf", "frsf"]
SGD, ADAM = {"momentum": 0.9}, {"betas": [0.9, 0.999]}
MNIST_RATES, ADAM_RATES = [1e-3, 1e-3, 1e-4, 1e-3, 1e-3, 1e-3], [1e-3] * 6
MNIST, CIFAR, IMAGENET = (1e-3, 100, 64, [50, 75]), (1e-4, 250, 128, [100, 150, 200]), (1e-4, 75, 256, [20, 40, 60])
#: Columns of tables 1 to 3: file, data set, network, optimizer, its arguments, rates of tables 6 to 8 in the order
#: of RULES; weight decay, epochs, batch size and milestones of appendix 6.1.
COLUMNS = [
    ("mnist/le_net", "mnist", "le_net_mnist", "SGD", SGD, MNIST_RATES, *MNIST),
    ("fashion_mnist/le_net", "fashion_mnist", "le_net_mnist", "SGD", SGD, MNIST_RATES, *MNIST),
    ("cifar10/le_net_sgd", "cifar10_benchmark", "le_net_cifar", "SGD", SGD, [0.1, 1e-3, 1e-4, 0.1, 0.1, 0.1], *CIFAR),
    ("cifar10/le_net_adam", "cifar10_benchmark", "le_net_cifar", "Adam", ADAM, [1e-3, 1e-4, 1e-4, *[1e-3] * 3], *CIFAR),
    ("cifar10/resnet20_sgd", "cifar10_benchmark", "resnet20", "SGD", SGD, [0.1, 0.1, 1e-3, 0.1, 0.1, 0.1], *CIFAR),
    ("cifar10/resnet20_adam", "cifar10_benchmark", "resnet20", "Adam", ADAM, ADAM_RATES, *CIFAR),
    ("cifar10/resnet56_sgd", "cifar10_benchmark", "resnet56", "SGD", SGD, [0.1, 0.01, 1e-4, 0.1, 0.1, 0.1], *CIFAR),
    ("cifar10/resnet56_adam", "cifar10_benchmark", "resnet56", "Adam", ADAM, ADAM_RATES, *CIFAR),
    ("imagenet/resnet18", "imagenet", "resnet18", "SGD", SGD, [0.1, 0.1, 1e-3, 0.1, 0.1, 0.1], *IMAGENET),
]  # fmt: skip


def test_every_column_of_the_papers_tables_has_its_file_and_no_other_is_there():
    tables = {"paper/table1", "paper/table2"}
    assert {f"{path.parent.name}/{path.stem}" for path in PAPER} == {column[0] for column in COLUMNS} | tables


@pytest.mark.parametrize("column", COLUMNS, ids=[column[0] for column in COLUMNS])
def test_a_file_of_the_paper_has_its_rows_with_the_papers_rates_and_recipe(column):
    file, dataset, architecture, optimizer, arguments, rates, decay, epochs, batch_size, milestones = column
    study = read(ROOT / "configs" / "paper" / f"{file}.yaml")
    assert str(study.folder) == f"runs/paper/{file}"
    assert list(study.points) == [f"rule={rule},seed=2021" for rule in RULES]
    for rule, rate, each in zip(RULES, rates, study.points.values(), strict=True):
        by_adam = file == "imagenet/resnet18" and rule == "dfa"
        expected = {"type": optimizer, "lr": rate, "weight_decay": decay, **arguments}
        if by_adam:
            expected = {"type": "Adam", "lr": 1e-3, "weight_decay": decay}
        assert each.training.optimizer.model_dump(exclude={"batch_manhattan"}) == expected
        assert each.training.lr_scheduler.model_dump(exclude_none=True) == {
            "type": "multistep_lr", "gamma": 0.1, "milestones": milestones,
        }  # fmt: skip
        hyperparameters = each.training.hyperparameters
        assert (hyperparameters.epochs, hyperparameters.batch_size, hyperparameters.accumulate) == (
            epochs,
            batch_size,
            1,
        )
        assert (each.data.dataset, each.model.architecture) == (dataset, architecture)
        assert each.data.target_size == (224 if dataset == "imagenet" else 32)
        assert each.model.architecture in models.available()
        assert each.model.mode.model_dump() == {"type": rule, "options": {"init": "xavier"}, "layers": None}
        assert (each.experiment.seed, each.experiment.deterministic, each.evaluation) == (2021, True, True)
        assert (each.training.warmup_epochs, each.training.clip_gradient_norm, each.training.early_stop) == (
            0,
            None,
            None,
        )
        assert each.infrastructure.gpus == ([0, 1] if dataset == "imagenet" else -1)
        augmentation = each.data.augmentation
        assert (augmentation is None) == ("mnist" in dataset)
        if dataset == "cifar10_benchmark":
            assert (augmentation.crop, augmentation.flip) == (4, True)


def test_the_papers_mnist_protocol_is_one_override():
    study = read(
        ROOT / "configs/paper/mnist/le_net.yaml", ["data.validation=test", "experiment.name=le_net_paper_protocol"]
    )
    assert {each.data.validation for each in study.points.values()} == {"test"}


def test_a_table_in_one_file_is_its_columns_with_the_same_settings(tmp_path):
    columns = {}
    for file in (path for path in PAPER if path.parent.name not in ("imagenet", "paper")):
        for each in read(file).points.values():
            columns[_setting(each)] = each
    tables = {}
    for number in (1, 2):
        for each in read(ROOT / f"configs/paper/table{number}.yaml").points.values():
            tables[_setting(each)] = each
    assert len(tables) == len(columns) == 12 + 36
    for setting, each in columns.items():
        theirs = {key: value for key, value in flat(each.model_dump()).items() if key[0] != "experiment"}
        mine = {key: value for key, value in flat(tables[setting].model_dump()).items() if key[0] != "experiment"}
        assert mine == theirs


def _setting(config):
    return config.data.dataset, config.model.architecture, config.training.optimizer.type, config.model.mode.type


# Zips and refinements ------------------------------------------------------------------------------

ZIP = "  size:\n    zip: {training.hyperparameters.batch_size: [8, 16], data.target_size: [28, 32]}\n"
WHEN = """\
  training.optimizer.type: [SGD, Adam]
  model.mode.type: {fa: {training.optimizer.lr: 0.3}, dfa: {}}
  size: {small: {data.target_size: 28}, large:}
  when:
    - {training.optimizer.type: Adam, set: {training.optimizer.lr: 0.001}}
    - {training.optimizer.type: [Adam], model.mode.type: dfa, size: [small], set: {training.optimizer.lr: 0.002}}
"""


def test_a_zip_takes_the_values_of_its_lists_together(tmp_path):
    found = points(tmp_path, ZIP + "  model.mode.type: [fa, dfa]\n")
    assert list(found)[:2] == ["batch_size=8,target_size=28,rule=fa", "batch_size=8,target_size=28,rule=dfa"]
    pairs = [(each.training.hyperparameters.batch_size, each.data.target_size) for each in found.values()]
    assert pairs == [(8, 28), (8, 28), (16, 32), (16, 32)]


@pytest.mark.parametrize(
    ("axis", "message"),
    [("size: {zip: {experiment.seed: [1, 2], data.target_size: [28]}}", "2 of experiment.seed, 1 of data.target_size"),
     ("size: {zip: [1, 2]}", "mapping of key paths to lists"),
     ("size: {zip: {experiment.seed: []}}", "lists of values"),
     ("experiment.seed: {zip: {data.target_size: [28]}}", "a word of your own"),
     ("size: {zip: {experiment.name: [a]}}", "cannot be swept")],
)  # fmt: skip
def test_a_zip_that_is_none_is_refused(tmp_path, axis, message):
    [problem] = refused(write(tmp_path, f"{BASE}sweep:\n  {axis}\n"))
    assert message in problem


def test_when_sets_more_where_axes_meet_and_later_entries_refine_earlier_ones(tmp_path):
    found = points(tmp_path, WHEN)
    rates = {name: each.training.optimizer.lr for name, each in found.items()}
    assert rates == {
        "type=SGD,rule=fa,size=small": 0.3, "type=SGD,rule=fa,size=large": 0.3,
        "type=SGD,rule=dfa,size=small": 0.1, "type=SGD,rule=dfa,size=large": 0.1,
        "type=Adam,rule=fa,size=small": 0.001, "type=Adam,rule=fa,size=large": 0.001,
        "type=Adam,rule=dfa,size=small": 0.002, "type=Adam,rule=dfa,size=large": 0.001,
    }  # fmt: skip


def test_an_override_is_stronger_than_when_and_narrows_it(tmp_path):
    found = points(tmp_path, WHEN, "training.optimizer.lr=0.5")
    assert {each.training.optimizer.lr for each in found.values()} == {0.5}
    found = points(tmp_path, WHEN, "training.optimizer.type=Adam", "model.mode.type=dfa")
    assert [each.training.optimizer.lr for each in found.values()] == [0.002, 0.001]
    found = points(tmp_path, WHEN, "model.mode.type=usf")  # no entry is about it
    assert {each.training.optimizer.lr for each in found.values()} == {0.1, 0.001}


@pytest.mark.parametrize(
    ("entry", "line", "message"),
    [("{model.mode.type: usf, set: {training.optimizer.lr: 1}}", 20, "no point of the sweep meets"),
     ("{model.mode.typ: fa, set: {training.optimizer.lr: 1}}", 20, "no point of the sweep meets"),
     ("{set: {training.optimizer.lr: 1}}", 20, "a condition is needed"),
     ("{model.mode.type: fa}", 20, "`set` must be a mapping"),
     ("{model.mode.type: fa, set: {experiment.name: x}}", 20, "cannot be swept"),
     ("{model.mode.type: fa, set: {training.optimizer.momentun: 1}}", 20, "Did you mean 'momentum'"),
     ("fa", 20, "conditions and `set` are needed")],
)  # fmt: skip
def test_a_mistake_in_when_is_told_with_its_line(tmp_path, entry, line, message):
    sweep = f"  model.mode.type: [fa, dfa]\n  when:\n    - {entry}\n"
    problems = refused(write(tmp_path, f"{BASE}sweep:\n{sweep}"))
    assert len(problems) == 1, problems
    [problem] = problems
    assert problem.startswith(f"base.yaml:{line}: "), problem
    assert message in problem


def test_an_axis_that_is_a_key_path_can_be_given_as_an_override(tmp_path):
    found = points(tmp_path, GRID, "sweep.experiment.seed=[5, 6, 7]", "model.mode.type=fa")
    assert list(found) == ["seed=5", "seed=6", "seed=7"]
    found = points(tmp_path, GRID, "sweep.training.optimizer.lr=[1, 2]", "sweep.experiment.seed=[1]")
    assert list(found)[:2] == ["rule=fa,seed=1,lr=1", "rule=fa,seed=1,lr=2"]


def test_an_axis_varies_a_key_inside_of_an_overridden_section_in_any_order(tmp_path):
    both = ("sweep.data.dataset=[digits, wine]", "data={dataset: mnist, validation_size: 30}")
    for overrides in (both, both[::-1]):
        study = read(write(tmp_path, BASE.replace("le_net_mnist", "mlp")), overrides)
        found = {name: (each.data.dataset, each.data.validation_size) for name, each in study.points.items()}
        assert found == {"dataset=digits": ("digits", 30), "dataset=wine": ("wine", 30)}
    assert next(iter(points(tmp_path, GRID, "sweep.model.mode.type=[usf]", "model.mode.type=usf"))) == "seed=0,rule=usf"


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("model.mode.type=fa", "sweep.model.mode.type=[fa, dfa]"),
        ("model.mode.type=usf", "sweep={model.mode.type: {fa: {}, dfa: {}}}"),
        ("model.mode.type=usf", "sweep.pair={zip: {model.mode.type: [fa, dfa], training.optimizer.lr: [1, 2]}}"),
        ("model.mode.type=usf", "sweep.model.mode=[{type: fa}, {type: dfa}]"),
        ("training.optimizer.lr=3", "sweep={training.optimizer.lr: [1, 2]}"),
    ],
)
def test_no_point_is_named_after_a_value_that_an_override_replaces(tmp_path, override, axis):
    key = override.partition("=")[0]
    for overrides in ((override, axis), (axis, override)):
        problems = refused(write(tmp_path), *overrides)
        assert problems[0].startswith(f"override {override}: {key}: the axis "), problems
        assert "leave one of the two out" in problems[0]


def test_when_is_a_list(tmp_path):
    [problem] = refused(write(tmp_path, f"{BASE}sweep:\n  model.mode.type: [fa]\n  when: {{a: 1}}\n"))
    assert "a list of" in problem
