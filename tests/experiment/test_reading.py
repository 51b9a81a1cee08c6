"""Configurations: every key is checked, and every problem is told with its place, its key path and a nearby name."""

import pytest
from config_cases import BASE, FILES, message, refused, write

from biotorch.experiment import ConfigError, read


def test_all_problems_of_a_file_and_of_the_overrides_are_told_at_once_with_place_key_and_nearest_name(tmp_path):
    text = (
        BASE.replace("digits", "digit")
        .replace("le_net_mnist", "le_net_mnits")
        .replace("    epochs: 1", "    epochs: 0")
    )
    path = write(tmp_path, text + "    momentun: 0.9\nevaluaton: true\n")
    problems = refused(path, "model.mode.type=dfaa", "infrastructure.thread=2", "logging.wandb=[1]")
    expected = [
        ("base.yaml:4: data.dataset: ", "Did you mean 'digits'"),
        ("base.yaml:7: model.architecture: ", "Did you mean 'le_net_mnist'"),
        ("base.yaml:12: training.hyperparameters.epochs: ", "greater than or equal to 1, got 0"),
        ("base.yaml:17: training.optimizer.momentun: ", "Did you mean 'momentum'"),
        ("base.yaml:18: evaluaton: ", "Did you mean 'evaluation'"),
        ("override model.mode.type=dfaa: model.mode.type: ", "Did you mean 'dfa'"),
        ("override infrastructure.thread=2: infrastructure.thread: ", "Did you mean 'threads'"),
        ("override logging.wandb=[1]: logging.wandb: ", "valid string"),
    ]
    for start, end in expected:
        assert [end in line for line in problems if line.startswith(start)] == [True], (start, problems)
    assert len(problems) == len(expected)
    with pytest.raises(ConfigError, match=r"base\.yaml: 8 problems\n"):
        read(path, ["model.mode.type=dfaa", "infrastructure.thread=2", "logging.wandb=[1]"])


SECTIONS = {
    "experiment.nam": "name", "experiment.output_dri": "output_dir", "data.target_sise": "target_size",
    "data.augment.flp": "flip", "model.loss_func": "loss_function", "model.mode.option": "options",
    "model.mode.options.initt": "init", "model.loss_function.label_smothing": "label_smoothing",
    "training.hyperparameters.epoch": "epochs", "training.optimiser": "optimizer",
    "training.lr_schedule": "lr_scheduler", "training.early_stop.patienc": "patience",
    "training.metrics.topk": "top_k", "infrastructure.gpu": "gpus", "logging.tensorbord": "tensorboard",
    "swep": "sweep", "modl.architecture": "model", "traning.optimizer.lr": "training",
}  # fmt: skip


@pytest.mark.parametrize("key", SECTIONS)
def test_an_unknown_key_in_any_section_is_told_with_the_nearest_one(tmp_path, key):
    problems = refused(write(tmp_path), f"{key}=3")
    told = [
        line
        for line in problems
        if line.startswith(f"override {key}=3: ") and f"Did you mean '{SECTIONS[key]}'" in line
    ]
    assert len(told) == 1, problems


def test_a_misspelt_type_beside_other_mistakes_hides_none_of_them(tmp_path):
    problems = refused(write(tmp_path, BASE.replace("    lr: 0.1\n", "    momentun: 0.9\n")))
    assert any("training.optimizer.lr: missing" in line for line in problems)
    assert any("Did you mean 'momentum'" in line for line in problems)


WRONG_TYPES = [
    "experiment=3", "experiment.name=3", "experiment.name=[a]", "experiment.seed=a", "experiment.seed=1.5",
    "experiment.seed=-1", "experiment.seed=true", "experiment.deterministic=maybe", "experiment.deterministic=3",
    "data=[]", "data.dataset=1", "data.target_size=a", "data.target_size=0", "data.target_size=true",
    "data.num_workers=-1", "data.batch_size=0.5", "data.validation=train", "data.validation_size=0",
    "data.augment=3", "data.skip_corrupt=3", "model.architecture=[a]", "model.mode=fa", "model.mode.options=[1]",
    "model.mode.options.init=3", "model.mode.options.gradient_clip=2", "model.mode.options.constrain_weights=a",
    "model.pretrained=3", "model.checkpoint=[a]", "model.loss_function=mse", "model.loss_function.name=3",
    "training=3", "training.hyperparameters=[1]", "training.hyperparameters.epochs=1.5",
    "training.hyperparameters.epochs=true", "training.hyperparameters.batch_size=a",
    "training.hyperparameters.accumulate=0", "training.optimizer=SGD", "training.optimizer.type=3",
    "training.optimizer.lr=a", "training.optimizer.lr=true", "training.optimizer.lr=0", "training.optimizer.lr=-0.1",
    "training.optimizer.lr=.nan", "training.optimizer.lr=.inf", "training.lr_scheduler=StepLR",
    "training.warmup_epochs=-1", "training.warmup_epochs=a", "training.clip_gradient_norm=0",
    "training.early_stop=true", "training.early_stop={patience: 0}", "training.early_stop={}",
    "training.metrics.top_k=0", "training.metrics.display_iterations=0", "training.metrics.weight_alignment=3",
    "training.metrics.weight_ratio=a", "infrastructure.gpus=a", "infrastructure.gpus=-2", "infrastructure.gpus=[]",
    "infrastructure.gpus=[0, 0]", "infrastructure.gpus=[-1]", "infrastructure.gpus=true", "infrastructure.gpus=1.5",
    "infrastructure.num_nodes=0", "infrastructure.strategy=fsdp", "infrastructure.precision=16",
    "infrastructure.precision=true", "infrastructure.compile=a", "infrastructure.threads=0",
    "infrastructure.checkpoint_seconds=-1", "evaluation=3", "logging=true", "logging.tensorboard=a",
    "logging.wandb=3", "sweep=[1]", "sweep=3",
]  # fmt: skip


@pytest.mark.parametrize("override", WRONG_TYPES)
def test_a_wrong_value_is_one_problem_at_the_key(tmp_path, override):
    key = override.partition("=")[0]
    problems = refused(write(tmp_path), override)
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"override {override}: {key}"), problems


@pytest.mark.parametrize(
    "override",
    [
        "training.optimizer.lr='0.1'",
        "training.hyperparameters.epochs='5'",
        "evaluation='no'",
        "infrastructure.gpus='0'",
        "infrastructure.gpus=[true]",
        "experiment.deterministic=1",
        "training.optimizer.momentum='0.9'",
        "training.metrics.weight_ratio=1",
    ],
)
def test_a_quoted_number_or_a_number_for_a_switch_is_a_wrong_type_as_the_schema_says(tmp_path, override):
    assert len(refused(write(tmp_path), override)) == 1


@pytest.mark.parametrize(
    "override",
    [
        "experiment.seed=18446744073709551616",
        "infrastructure.threads=1000000000000000",
        "data.batch_size=100000000000000000000",
        "training.hyperparameters.batch_size=100000000000000000000",
        'experiment.name="a\\0b"',
        "experiment.name=' '",
        "experiment.name=.",
        "experiment.name=..",
        "experiment.name=../up",
        "experiment.name=/absolute",
        "experiment.name=a/" + "é" * 128,
        "experiment.output_dir=~nouser/x",
        'experiment.output_dir="a\\0b"',
        "model.checkpoint=~nouser/x",
        'model.checkpoint="a\\nb"',
        "data.dataset_path=~nouser/x",
        "data.dataset=folder:~nouser/x",
        'data.dataset="text:a\\0b"',
        'data.dataset="a\\e.npz"',
        "attacks={twin: ~nouser/x}",
        "data.num_workers=1000000",
    ],
)
def test_a_value_that_no_run_could_have_is_refused_before_one_starts(tmp_path, override):
    problems = refused(write(tmp_path), override)
    assert problems[0].startswith(f"override {override}: "), problems


IMPOSSIBLE = {
    "model.pretrained": ["model.pretrained=true", "model.checkpoint=x.pth"],
    "model.architecture": ["model.architecture=null"],
    "training": ["training=null"],
    "evaluation": ["training=null", "model.checkpoint=x.pth", "evaluation=false"],
    "data.validation_size": ["data.validation=test", "data.validation_size=10"],
    "data.augment": ["data.dataset=folder:/images", "data.augment={crop: 2}"],
    "training.warmup_epochs": ["training.warmup_epochs=2"],
    "training.metrics": ["training.metrics={layer_alignment: true, weight_alignment: true}"],
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_an_impossible_combination_is_one_problem_at_a_key_of_it(tmp_path, key):
    problems = refused(write(tmp_path), *IMPOSSIBLE[key])
    assert len(problems) == 1, problems
    place = [f"override {override}: " for override in IMPOSSIBLE[key]]
    assert problems[0].startswith(tuple(place)), problems
    assert f": {key}" in problems[0], problems


def test_a_checkpoint_knows_its_architecture_and_rule(tmp_path):
    config = read(write(tmp_path), ["model={checkpoint: x.pth}", "training=null"]).config
    assert (config.model.architecture, config.model.mode, config.training) == (None, None, None)
    assert read(write(tmp_path), ["model.mode=null"]).config.model.mode.type == "backpropagation"


# YAML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (BASE + "evaluation: true\nevaluation: false\n", 18, "evaluation"),
        (BASE.replace("    lr: 0.1", "    lr: 0.1\n    lr: 0.2"), 17, "training.optimizer.lr"),
        (BASE + "infrastructure: {threads: 1, gpus: 0, threads: 2}\n", 17, "infrastructure.threads"),
        (BASE + "sweep:\n  experiment.seed: [1]\n  experiment.seed: [2]\n", 19, "sweep.experiment.seed"),
        (BASE + "sweep:\n  a:\n    x: {experiment.seed: 1}\n    x: {experiment.seed: 2}\n", 20, "sweep.a.x"),
    ],
)
def test_a_key_that_stands_twice_is_told_with_both_lines(tmp_path, text, line, key):
    (problem,) = refused(write(tmp_path, text))
    assert problem.startswith(f"base.yaml:{line}: {key}: this key is already set in line ")


@pytest.mark.parametrize("key", ["1", "1.5", "~", "on", "2020-01-01", "[a, b]", "{a: b}"])
def test_a_key_that_is_no_word_is_told_with_its_line(tmp_path, key):
    told = message(write(tmp_path, BASE + f"logging:\n  ? {key}\n  : 1\n"))
    assert "base.yaml" in told
    assert ":18: " in told or "line 18" in told


def test_aliases_and_merge_keys_work_and_their_keys_are_checked_where_they_stand(tmp_path):
    text = (
        BASE.replace("  hyperparameters:\n", "  hyperparameters: &sizes\n")
        + "sweep:\n  training.hyperparameters: [*sizes]\n"
    )
    assert read(write(tmp_path, text)).config.training.hyperparameters.batch_size == 64
    merged = BASE + "infrastructure:\n  <<: {threads: 2, gpus: 0}\n  threads: 3\n"
    config = read(write(tmp_path, merged)).config
    assert (config.infrastructure.threads, config.infrastructure.gpus) == (3, 0)
    (problem,) = refused(write(tmp_path, BASE + "infrastructure:\n  <<:\n    thread: 2\n"))
    assert problem.startswith("base.yaml:19: infrastructure.thread: unknown key. Did you mean 'threads'")


NOT_YAML = {
    "a bracket": BASE + "sweep: {a: [1\n", "a tab": BASE.replace("  hyper", "\thyper"),
    "two documents": BASE + "---\na: 1\n", "an alias to nothing": BASE + "evaluation: *nothing\n",
    "an alias to itself": BASE + "sweep: &a {x: *a}\n",
    "code": BASE + "logging: !!python/object/apply:os.getcwd []\n",
    "a NUL": BASE + "# \x00\n",
    "a control character": BASE + "# \x07\n", "digits": BASE.replace(": 64", ": " + "9" * 5000),
    "depth": "a: " + "[" * 3000, "merged scalar": BASE + "logging:\n  <<: 3\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_YAML)
def test_what_is_no_yaml_is_told_with_file_and_line(tmp_path, kind):
    told = message(write(tmp_path, NOT_YAML[kind]))
    assert told.startswith("base.yaml")
    assert len(told) < 2000
    assert any(f"line {line}" in told or f":{line}:" in told for line in range(1, 20)), told


@pytest.mark.parametrize("text", ["", "null", "- a", "3", "just words", "# a comment\n"])
def test_a_file_without_sections_says_what_is_expected(tmp_path, text):
    assert "base.yaml holds no configuration: expected sections such as experiment, data, model" in message(
        write(tmp_path, text)
    )


LONG = "z" * 10**6


@pytest.mark.parametrize(
    "override",
    [f"model.mode.type={LONG}", f"data.dataset={LONG}", f"experiment.name={LONG}", f"{LONG}=3", f"training.{LONG}=3",
     f"model.mode.options.init={LONG}", f"training.optimizer.lr={LONG}", f"training.optimizer.{LONG}=1", LONG,
     f"model.arguments.{LONG}=1", f"imports=[{LONG}]", f"sweep={LONG}", f"model.loss_function.name={LONG}"],
    ids=lambda override: override.replace(LONG, "LONG"),
)  # fmt: skip
def test_a_value_or_key_of_a_megabyte_is_not_echoed_and_not_compared_with_names(tmp_path, override):
    told = message(write(tmp_path, BASE.replace("le_net_mnist", "mlp")), override)
    assert len(told) < 2500
    assert "zzz" in told


def test_a_grid_is_bounded_before_it_is_expanded_and_problems_of_many_points_are_cut_short(tmp_path):
    axes = "".join(f"  a{n}: {{" + ", ".join(f"c{i}: {{b{n}: {i}}}" for i in range(40)) + "}\n" for n in range(6))
    (problem,) = refused(write(tmp_path, f"{BASE}sweep:\n{axes}"))
    assert problem == "base.yaml:17: sweep: the axes make 4,096,000,000 points, but a study has at most 10,000"
    problems = refused(write(tmp_path, f"{BASE}sweep:\n  training.optimizer.lr: {[-n for n in range(1, 3000)]}\n"))
    assert len(problems) == 30
    problems = refused(write(tmp_path, BASE + "".join(f"k{n}: 1\n" for n in range(5000))))
    assert problems[29:] == ["base.yaml:46: k29: unknown key.", "and 4,970 more"]
    (problem,) = refused(write(tmp_path, f"{BASE}sweep: {{size: {{{'n' * 300}: {{experiment.seed: 1}}}}}}\n"))
    assert "longer than 255 bytes" in problem


def test_an_override_of_an_aliased_section_changes_it_in_one_place(tmp_path):
    text = BASE.replace(
        "    type: fa\n", "    type: fa\n    layers: {head: &rule {type: dkp, options: &o {init: xavier}}}\n"
    )
    path = write(tmp_path, text + "cluster: {options: *o}\n")
    config = read(path, ["cluster.options.init=other"]).config
    assert (config.cluster.options, config.model.mode.layers["head"].options) == ({"init": "other"}, {"init": "xavier"})


def test_missing_files_folders_and_unreadable_ones_are_named(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"no configuration file .*bse\.yaml.* Did you mean 'base\.yaml'"):
        read(tmp_path / "bse.yaml")
    with pytest.raises(
        ConfigError, match=r"is a folder, not a file; in the folder of a run, the configuration is .*config\.yaml"
    ):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(BASE.encode() + b"# \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml cannot be read"):
        read(tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert read(path).config == read(write(tmp_path)).config


def test_numbers_in_scientific_notation_are_numbers_everywhere(tmp_path):
    path = write(tmp_path, BASE.replace("lr: 0.1", "lr: 1e-3\n    weight_decay: 1E-8\n    momentum: +9.e-1"))
    optimizer = read(path, ["training.lr_scheduler={type: StepLR, step_size: 1, gamma: 1e-1}"]).config.training
    assert (optimizer.optimizer.lr, optimizer.optimizer.model_extra) == (1e-3, {"weight_decay": 1e-8, "momentum": 0.9})
    assert optimizer.lr_scheduler.model_extra["gamma"] == 0.1
    assert read(path, ["training.hyperparameters.epochs=1e2"]).config.training.hyperparameters.epochs == 100


def test_the_everything_file_sets_every_key(tmp_path):
    study = read(FILES / "everything.yaml")
    assert len(study.points) == 8
    for name, section in study.config:
        unset = (
            []
            if isinstance(section, bool | dict | list)
            else set(type(section).model_fields) - section.model_fields_set
        )
        assert not unset, (name, unset)
