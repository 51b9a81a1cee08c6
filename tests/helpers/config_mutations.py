"""Mutations of configurations: of their trees, of their text and of their overrides, and an independent YAML reader."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from pathlib import Path
from typing import Any

import yaml
from config_cases import CONFIGS, FILES

#: A small run whose mutations are estimated, as far as `biotorch run --dry-run` goes.
SMALL = """\
experiment: {name: small, output_dir: out, seed: 3}
data: {dataset: digits, validation_size: 180}
model:
  architecture: mlp
  arguments: {depth: 2, width: 16, activation: relu}
  mode: {type: fa, options: {init: xavier}, layers: {head: {type: backpropagation}}}
  loss_function: {name: cross_entropy, label_smoothing: 0.1}
training:
  hyperparameters: {epochs: 1, batch_size: 64, accumulate: 1}
  optimizer: {type: Adam, lr: 0.003, betas: [0.9, 0.99]}
  lr_scheduler: {type: MultiStepLR, milestones: [1, 2], gamma: 0.1}
  warmup_epochs: 0.5
  metrics: {top_k: 3, weight_alignment: true}
  early_stop: {patience: 3}
infrastructure: {threads: 1, checkpoint_seconds: 60, gpus: -1}
logging: {tensorboard: false}
evaluation: true
attacks: {images: 4, epsilons: [8/255]}
sweep:
  model.mode.type: [fa, dfa]
  size: {small: {model.arguments.width: 8}, large: }
"""
SOURCES: list[Path | str] = [*CONFIGS, *sorted(FILES.glob("*.yaml")), *[SMALL] * 12]

JUNK = [
    None, True, False, 0, 1, -1, 2.5, 1e300, -1e-300, math.nan, math.inf, 10**30, 2**63, 10**200, 10**9, "", " ", "x",
    "é\u202e日本", "a\nb", "a\0b", "~nouser/x", "folder:~nouser/x", "text:a\0b", "a" * 3000, "../" * 200, "[/y]",
    [], [[]], [None], [1, "a"], {}, {"x": {}}, {"type": "SGD"}, {"x": [{"y": None}]}, [True], ["fa"], "2020-01-01",
    "cross_entropy", -0.0, "1e-3", "null", "0100", "1:30.5", "yes", {1: 2}, {None: [1]}, {True: {}}, [0] * 500,
    {"depth": 10**8}, {"width": 10**6, "depth": 40}, {"width": [3, 4]}, {"dephth": 2},
]  # fmt: skip
OVERRIDES = [
    "", "=", "x", "a=b", "=1", "experiment", "experiment=", "experiment.name", "experiment.name=", "experiment..name=1",
    ".=1", "training.optimizer.lr=abc", "training.optimizer.lr=[", "training.optimizer.lr=5", "data=[1]", "sweep=3",
    "sweep={a: 1}", "sweep={experiment.seed: [1, 2]}", "sweep={a: {b: {experiment.seed: 3}}}", "sweep.x.y=1",
    "model.mode={type: usf}", "model.mode.type=frsf", "training=null", "experiment.name.x=1", "logging.wandb=ä\u2028b",
    "training.optimizer={type: Adam, lr: 3}", "training.optimizer.momentum=0.5", "experiment.name=\x00",
    "data.dataset=mnist", "training.metrics.layer_alignment=true", "experiment.seed=4", "infrastructure={threads: 2}",
    "infrastructure.gpus=[1, 2]", "model={}", "training.lr_scheduler=null", "training.lr_scheduler.type=StepLR",
    "evaluation=maybe", "evaluation=false", "experiment.seed=0100", "experiment.seed=0o14", "experiment.seed=0x1f",
    "training.optimizer.lr=1:30.5", "evaluation=no", "experiment.name=2020-01-01", "experiment.seed=!!int ''",
    "sweep={a: {zip: {1: [2]}}}", "sweep={when: [{1: 2, set: {a: 1}}]}", "sweep={model.arguments: [{1: 2}]}",
    "sweep={1: [2]}", "experiment.output_dir=~nouser/x", "model.checkpoint=~nouser/x", "data.dataset_path=~nouser/x",
    'data.dataset="text:\\ud800"', "experiment.name=" + "a" * 5000, "a." * 3000 + "b=1", "training.metrics.top_k=1000",
    "model.arguments={width: 1000000000}", "model.arguments={depth: 100000000}", "model.arguments.widht=3",
    "sweep.experiment.seed=[1, 2, 3]", "sweep.size={}", "data.target_size=9", "model.arguments.width=1e3",
    "training.hyperparameters.batch_size=1000000000", "data.batch_size=1000000000",
]  # fmt: skip
#: What may stand behind a line, between two lines, and in the place of a character.
BEHIND = [" é", ":", " :", " {", "]", " *a", " &a", " !!int", " |", " #", "'", "\x00", "\x07", "\ufeff", "\u2028"]
BETWEEN = ["<<: 3", "? [a]", "- x", "1: 2", "~: 3", "---", "...", "%TAG", "x: y", "<<: {z: 1}", "<<: [1]", "=: x"]
WITHIN = "\t\n:{}[]#&*!|>'\"%@`é☃0-. "
#: Six lists, each with the one before it eight times: 262,144 values.
LAUGHS = f"[&a [{', '.join('x' * 8)}], " + ", ".join(
    f"&{own} [{', '.join([f'*{below}'] * 8)}]" for below, own in itertools.pairwise("abcdef")
) + "]"  # fmt: skip
#: What may stand in the place of a plain value.
VALUES = [
    "!!timestamp x", "!!timestamp 2020-13-45", '!!int ""', '!!float ""', "!!bool foo", "!!binary x", "!!set {a, b}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x", "!!seq x", "!!map [1]", "!!merge x", "!x y",
    "!!python/name:os.system", "! 3",
    "&a [*a]", "&a {<<: *a}", "*nothing", "0100", "1:30.5", "0b1", "1_000", "yes", "off", "0o14", "0x1F", ".5",
    "1e999", "9" * 6000, "0x" + "f" * 6000, "[" * 400 + "]" * 400, "{a: " * 300 + "1" + "}" * 300, "2020-01-01",
    LAUGHS,
    '"\\ud800"', '"a\\0b"', '"\\e[31m"', "=", "<<",
]  # fmt: skip
GRIDS = [
    "\n  training.optimizer.lr: [" + ", ".join(f"1e-{n}" for n in range(1, 60)) + "]\n  experiment.seed: ["
    + ", ".join(map(str, range(500))) + "]\n  training.warmup_epochs: [0, 0.1, 0.2]",
    "\n  experiment.seed: [" + ", ".join(map(str, range(60))) + "]",
    "\n  " + "n" * 300 + ": {a: {experiment.seed: 1}}", "\n  size: {" + "n" * 300 + ": {experiment.seed: 1}}",
]  # fmt: skip


def sections(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], dict[Any, Any]]]:
    """All mappings of a tree with something in them, by path."""
    found = [(path, tree)] if isinstance(tree, dict) and tree else []
    for name, below in tree.items() if isinstance(tree, dict) else ():
        found += sections(below, (*path, name))
    return found


def typo(word: Any, draw: random.Random) -> str:
    """The word, misspelt."""
    at = draw.randrange(max(len(str(word)), 1))
    word = str(word)
    return draw.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + draw.choice("qz_ é.") + word[at:],
            word.upper(),
            word[::-1],
            word + "s",
        ]
    )


def mutate_tree(tree: Any, draw: random.Random) -> None:
    """Rename, move, delete, swap or replace one key of a tree in place."""
    if not tree:
        return
    _, section = draw.choice(sections(tree))
    key = draw.choice(list(section))
    kind = draw.randrange(7)
    if kind == 0:
        section[typo(key, draw)] = section.pop(key)
    elif kind == 1:
        draw.choice(sections(tree))[1][key] = copy.deepcopy(section[key])
    elif kind == 2:
        del section[key]
    elif kind == 3:
        section[key] = [section[key]]
    elif kind == 4:
        other = draw.choice(list(section))
        section[key], section[other] = section[other], section[key]
    elif kind == 5 and isinstance(section[key], str):
        section[key] = typo(section[key], draw)
    else:
        section[key] = copy.deepcopy(draw.choice(JUNK))


def mutate_text(text: str, draw: random.Random) -> str:
    """A document with a line, a value or a character changed."""
    lines = text.splitlines()
    at = draw.randrange(len(lines))
    kind = draw.randrange(13)
    if kind == 0:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif kind == 1:
        lines[at] = "\t" + lines[at]
    elif kind == 2:
        return text[: draw.randrange(len(text))]
    elif kind == 3:
        del lines[at]
    elif kind == 4:
        lines[at] = " " * draw.randrange(1, 4) + lines[at]
    elif kind == 5:
        lines[at] = lines[at].lstrip()
    elif kind == 6:
        lines[at] += draw.choice(BEHIND)
    elif kind == 7:
        lines.insert(at, draw.choice(BETWEEN))
    elif kind < 11:
        valued = [number for number, line in enumerate(lines) if ": " in line]
        if valued:
            at = draw.choice(valued)
            parts = lines[at].split(": ")
            spot = draw.randrange(1, len(parts))
            rest = min((parts[spot].find(c) for c in ",}" if c in parts[spot]), default=len(parts[spot]))
            parts[spot] = draw.choice(VALUES) + parts[spot][rest:]
            lines[at] = ": ".join(parts)
    elif kind == 11:
        return text.partition("\nsweep:")[0] + "\nsweep:" + draw.choice(GRIDS) + "\n"
    else:
        spot = draw.randrange(len(text))
        changed = draw.choice([draw.choice(WITHIN), chr(ord(text[spot]) ^ 1 << draw.randrange(8))])
        return text[:spot] + changed + text[spot + 1 :]
    return "\n".join(lines)


@functools.cache
def source(path: Path | str) -> str:
    """Text of a source."""
    return path if isinstance(path, str) else path.read_text()


def mutated(draw: random.Random) -> tuple[str, list[str]]:
    """Text of a configuration and overrides, of which something is wrong."""
    text = source(draw.choice(SOURCES))
    overrides = []
    for _ in range(draw.randrange(1, 3)):
        kind = draw.random()
        if kind < 0.5:
            tree = readable(text) or {"experiment": text}
            for _ in range(draw.randrange(1, 3)):
                mutate_tree(tree, draw)
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw.random() < 0.5)
        elif kind < 0.8:
            text = mutate_text(text, draw) if text.strip() else text
        else:
            overrides.append(draw.choice(OVERRIDES))
    return text, overrides


def readable(text: str) -> dict[Any, Any] | None:
    """The tree of a document that has one and is small, else None."""
    try:
        small = len(text) < 10_000 and "&a" not in text and text.count("[") + text.count("{") < 200
        tree = plain(text) if small else None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    return tree if isinstance(tree, dict) and tree else None


def plain(text: str) -> Any:
    """Values of a YAML 1.2 document, stated once more; duplicate keys and tags are not looked at."""
    return _value(yaml.compose(text, Loader=yaml.BaseLoader))


def _value(node: Any) -> Any:
    if node is None or isinstance(node, yaml.ScalarNode):
        return None if node is None else node.value if node.style else _scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each) for each in node.value]
    pairs = [(_value(key), _value(value)) for key, value in node.value]
    merged: dict[Any, Any] = {}
    for key, value in pairs:
        if key == "<<":
            for each in reversed(value if isinstance(value, list) else [value]):
                merged |= each
    return merged | {key: value for key, value in pairs if key != "<<"}


def _scalar(text: str) -> Any:
    words = {"": None, "~": None, "null": None, "true": True, "false": False, ".nan": math.nan, ".inf": math.inf}
    for spelt in (str, str.title, str.upper):
        for word, value in words.items():
            if text == spelt(word) or (word.startswith(".") and text == word[0] + spelt(word[1:])):
                return value
    if text in ("-.inf", "+.inf"):
        return float(text.replace(".", ""))
    if len(text) > 250:  # no number is as long, and Python would not write it
        return text
    digits = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if digits.isascii() and digits.isdecimal():
        return int(text)
    try:
        if text[:2] in ("0o", "0x") and "_" not in text:
            return int(text, 0)
        if set(text) <= set("0123456789.eE+-"):
            return float(text)
    except ValueError:
        pass
    return text
