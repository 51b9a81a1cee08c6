"""Drafts of configurations: a commented file, which runs as it is."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from biotorch import data, rules
from biotorch.data import DataConfig, sources, tables
from biotorch.experiment import documents
from biotorch.experiment.config import Config
from biotorch.experiment.identity import resolved
from biotorch.experiment.network import build_model, check_input
from biotorch.experiment.reading import Study, validate
from biotorch.training.randomness import repeatable

#: Networks that take images of one size only, in pixels.
_SIDES = {"le_net_mnist": 32, "le_net_cifar": 32}
#: Data sets that a run downloads.
_DOWNLOADED = ("mnist", "fashion_mnist", "cifar10", "cifar10_benchmark", "cifar100")
#: Column at which comments begin.
_COMMENTS = 44


@dataclasses.dataclass(frozen=True)
class Draft:
    """Choices of which a configuration is written.

    Attributes:
        name: name of the experiment.
        dataset: value of `data.dataset`.
        architecture: value of `model.architecture`.
        rules: names of the rules; several become a sweep.
        epochs: length of the training; None is a number that suits the kind of data.
        target: columns of a table to predict, if the data set has no default.
        ignore: columns of a table that are no inputs.
        imports: modules that register the user's own rules, layers or networks.
    """

    name: str
    dataset: str
    architecture: str
    rules: Sequence[str]
    epochs: int | None = None
    target: Sequence[str] = ()
    ignore: Sequence[str] = ()
    imports: Sequence[str] = ()

    def text(self, file: str) -> str:
        """The configuration as commented YAML; `file` is its name, for the commands in its head."""
        parts = [self._head(file), self._experiment(), self._data(), self._model(), self._training(), _INFRASTRUCTURE]
        return "\n".join([*parts, self._sweep()] if len(self.rules) > 1 else parts)

    def _head(self, file: str) -> str:
        imports = [f"\nimports: {_yaml(list(self.imports))}"] if self.imports else []
        lines = [
            f"# {self.architecture} on {self.dataset}, written by `biotorch init`.",
            f"#   biotorch run {file}              train; the same command continues after an interruption",
            f"#   biotorch run {file} --dry-run    list the runs, and estimate their time",
            "# `biotorch rules` lists the rules, `biotorch models` the networks, docs/experiments.md all keys.",
            *imports,
        ]
        return "\n".join(lines) + "\n"

    def _experiment(self) -> str:
        lines = [("experiment:", ""), (f"  name: {_yaml(self.name)}", f"the results are in runs/{self.name}")]
        lines += [("  output_dir: runs", "")]
        if len(self.rules) == 1:
            lines += [("  seed: 0", "of the weights W, the feedback weights B and the order of the data")]
        return _commented(lines)

    def _data(self) -> str:
        source, _ = sources.find(self.dataset)
        lines = [("data:", ""), (f"  dataset: {_yaml(self.dataset)}", "")]
        if source.kinds == {"table"}:
            target = self.target[0] if len(self.target) == 1 else list(self.target)
            lines += [(f"  target: {_yaml(target)}", "column to predict")] if self.target else []
            ignored = f"  ignore: {_yaml(list(self.ignore))}" if self.ignore else "  # ignore: [id]"
            lines += [(ignored, "columns that are no inputs")]
            lines += [("  # missing: impute", "fill empty fields, which are an error otherwise")]
        elif source.kinds == {"text"}:
            lines += [("  sequence_length: 128", "characters per example")]
        elif source.in_files:
            lines += [("  target_size: 224", "side of the square that is cut out of an image, in pixels")]
            lines += [("  # num_workers: 2", "processes that read the files")]
        elif self.architecture in _SIDES and source.kinds == {"images"}:
            lines += [
                (f"  target_size: {_SIDES[self.architecture]}", "the network needs images of this side, in pixels")
            ]
        lines += [("  # validation_size: 100", "examples held out of the training set to choose the best epoch")]
        return _commented(lines)

    def _model(self) -> str:
        lines = [("model:", ""), (f"  architecture: {_yaml(self.architecture)}", "")]
        if self.architecture == "mlp":
            lines += [("  arguments: {depth: 2, width: 128}", "hidden layers, and units of each")]
        if len(self.rules) == 1:
            lines += [("  mode:", ""), (f"    type: {_yaml(self.rules[0])}", "the learning rule")]
            lines += [("    # options: {gradient_clip: true}", "`biotorch rules` lists those of each rule")]
        return _commented(lines)

    def _training(self) -> str:
        source, _ = sources.find(self.dataset)
        in_text, small = source.kinds == {"text"}, self.dataset == "digits" or "table" in source.kinds
        epochs = self.epochs or (3 if in_text else 15 if small else 5)
        lines = [
            ("training:", ""),
            ("  hyperparameters:", ""),
            (f"    epochs: {epochs}", ""),
            (f"    batch_size: {32 if small else 64}", ""),
            ("  optimizer:", "any class of torch.optim, with its arguments"),
            *_OPTIMIZERS[any(rules.get(rule).learns for rule in self.rules)],
            (
                f"  # lr_scheduler: {{type: CosineAnnealingLR, T_max: {epochs}}}",
                "any class of torch.optim.lr_scheduler",
            ),
            ("  metrics:", ""),
            ("    weight_alignment: true", "alignment angle, between W and B, of each layer"),
            (
                "    gradient_alignment: true",
                "gradient angle, between the rule's gradient and the true one, of each layer",
            ),
        ]
        return _commented(lines)

    def _sweep(self) -> str:
        lines = [
            ("sweep:", "a run for each combination"),
            (f"  model.mode.type: {_yaml(list(self.rules))}", ""),
            ("  experiment.seed: [0]", "[0, 1, 2] gives means and standard deviations"),
        ]
        return _commented(lines)


_OPTIMIZERS = {
    False: [("    type: Adam", ""), ("    lr: 0.001", "")],
    True: [
        ("    type: AdamW", ""),
        ("    lr: 0.001", ""),
        ("    weight_decay: 0.01", "by which learned B align with W"),
    ],
}

_INFRASTRUCTURE = """infrastructure:
  gpus: -1                                  # -1 is the CPU, 0 the first GPU
  # precision: bf16-mixed                   # for GPUs
"""


def _commented(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{line:<{_COMMENTS - 2}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines)


def _yaml(value: str | list[str]) -> str:
    """The value as YAML in one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    plain = documents.dump([value]).removeprefix("- ").rstrip("\n")
    return json.dumps(value, ensure_ascii=False) if "\n" in plain or set(",[]{}#") & set(value) else plain


def network_for(dataset: str) -> str:
    """Name of a network that suits a data set."""
    source, _ = sources.find(dataset)
    if dataset in _DOWNLOADED or dataset == "digits":
        return "le_net_cifar" if dataset.startswith("cifar") else "le_net_mnist"
    if source.kinds == {"text"}:
        return "char_transformer"
    return "resnet18" if source.kinds == {"images"} else "mlp"


def name_for(dataset: str) -> str:
    """Name for an experiment on a data set: its own, without path, ending and signs that are odd in a file's name."""
    last = Path(dataset.partition(":")[2] or dataset).name.partition("@")[0].partition(".")[0]
    return re.sub(r"[^\w-]+", "_", last).strip("_") or "experiment"


def columns_of(dataset: str) -> list[str]:
    """Columns of a `table:`. Raises FileNotFoundError or DataError if it cannot be read."""
    path = dataset.partition(":")[2]
    return list(
        map(str, tables.read_table(path, DataConfig.model_construct(dataset=dataset).folder, None).frame.columns)
    )


def check(text: str, source: str) -> str:
    """Check that a configuration can run: keys, data, and the network on two examples.

    Args:
        text: the configuration.
        source: its name in messages.

    Returns:
        A sentence about data that are not on this machine yet, which a run downloads, or "".

    Raises:
        ConfigError, DataError, FileNotFoundError: as in a run.
    """
    tree, places, problems = documents.parse(text, source)
    study = validate(tree, source, places=places, problems=problems)
    dataset = study.config.data.dataset
    if dataset.startswith("hf:") or dataset in _DOWNLOADED:
        try:
            data.describe(study.config.data)
        except FileNotFoundError:
            return f"{dataset} is not in {study.config.data.folder} yet: the first run downloads it"
    _try(study)
    return ""


def _try(study: Study) -> None:
    """Pass two examples through the network of the first point; all points have the same data and architecture."""
    config: Config = resolved(study.config, earlier=None)
    with warnings.catch_warnings(), repeatable(0, False, config.infrastructure.threads):
        warnings.simplefilter("ignore")  # the run itself will warn
        dataset = data.load(config.data, config.experiment.seed)
        config.require_kind(dataset.kind)
        config = config.for_task(dataset.task)
        check_input(build_model(config, dataset.num_outputs, dataset.input_shape), dataset.train, config)
