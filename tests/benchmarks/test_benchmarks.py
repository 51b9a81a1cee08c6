"""The benchmarks: figures are computed rightly, limits fit the rules, and every subcommand writes records.

No test looks at how long anything takes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import strength
from benchmarks.attacks import PAIRS, Budget
from benchmarks.limits import FreeProjection, carrying, limit_of
from benchmarks.measuring import exponent, interleaved, ratio
from benchmarks.networks import NETWORKS
from benchmarks.readme import with_tables
from benchmarks.records import Record, load, save
from benchmarks.stepping import Stepper, Way

from biotorch import convert, rules

ROOT = Path(__file__).parents[2]


def test_ratios_are_taken_within_rounds_in_which_every_case_runs_once():
    log = []
    cases = {name: lambda name=name: log.append(name) or float(len(log)) for name in "abc"}
    costs = interleaved(cases, 20)
    turns = [tuple(log[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert [costs[name][3] for name in turns[3]] == [10, 11, 12]
    spread = ratio([2, 30, 6, 8, 10], [1, 10, 1, 1, 1])  # 2, 3, 6, 8, 10
    assert (spread.low, spread.median, spread.high) == (3, 6, 8)


def test_the_exponent_is_that_of_the_upper_half():
    sizes = [1, 2, 4, 8, 16]
    assert exponent(sizes, [100, 100, *(3 * size**2 for size in sizes[2:])]) == pytest.approx(2)
    with pytest.raises(ValueError, match="two sizes"):
        exponent([1], [1])


def test_every_rule_has_the_limit_of_its_kind():
    limits = {name: limit and limit.name for name in rules.available() if (limit := limit_of(name)) or True}
    free = {name: f"{name} with a free projection" for name in ("dfa", "dkp", "drtp", "sdfa")}
    assert limits == {
        **dict.fromkeys(("backpropagation", "fa", "frsf", "usf")),
        **dict.fromkeys(("ia", "sa", "sham", "wm"), "a copy of W"),
        **{"brsf": "random bits", "kp": "a second optimizer step", "shallow": "only the output layer"},
        **free,
    }


def test_limits_do_the_work_that_they_name():
    network, way = NETWORKS["le_net_mnist"], Way(2)
    weights = carrying(convert(network.build(), "brsf"), network)
    assert [tuple(weight.shape) for weight in weights] == [(16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]
    shallow = limit_of("shallow").stepper(network, "shallow", way)
    shallow.step()
    assert {name for name, each in shallow.model.named_parameters() if each.grad is not None} == {
        name for name, each in convert(network.build(), "shallow").named_parameters() if each.requires_grad
    }
    free = Stepper(network, "dkp", way, around=FreeProjection())
    arrived = []
    second = [each for each in free.model.modules() if isinstance(each, torch.nn.Conv2d)][1]
    second.register_forward_pre_hook(lambda layer, inputs: inputs[0].register_hook(arrived.append) and None)
    for _ in range(2):
        free.step()
    assert arrived[0].any()
    assert torch.equal(*arrived)
    gradients = [each.grad for name, each in free.model.named_parameters() if "feedback" in name]
    assert gradients
    assert not any(each is None or each.any() for each in gradients)


def test_tables_are_written_between_their_marks(tmp_path):
    common = {"benchmark": "step", "threads": 2, "date": "2026-01-01", "commit": "abc", "processor": "P", "torch": "2"}
    old = Record(network="mlp", rule="fa", ratio=1.5, quartiles=(1.4, 1.6), limit=1.0, **common)
    new = Record(network="mlp", rule="fa", ratio=1.25, quartiles=(1.2, 1.3), limit=1.0, fused=0.75, **common)
    other = Record(network="mlp", rule="dfa", ratio=0.5, precision="bf16", compiled=True, **common)
    save(tmp_path / "records.json", [old, new, other])
    records = load(tmp_path / "records.json")
    assert records == [old, new, other]
    written = with_tables("before\n<!-- step -->\nstale\n<!-- /step -->\nafter", records)
    assert written.splitlines() == [
        *("before", "<!-- step -->", "", "- 2026-01-01, commit abc, P, torch 2, CPU threads: 2", ""),
        "|  | fa | dfa |",
        "| --- | --- | --- |",
        "| mlp fp32 | 1.25 (1.00) |  |",
        "| mlp fp32, fused SGD | 0.75 |  |",
        "| mlp bf16, compiled |  | 0.50 |",
        *("", "<!-- /step -->", "after"),
    ]
    assert with_tables(written, records) == written
    (tmp_path / "records.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="holds no records"):
        load(tmp_path / "records.json")


def test_the_strength_of_two_attacks_is_compared_image_by_image(monkeypatch):
    images, labels = torch.eye(12)[:, None, None], torch.arange(12)
    labels[11] = 0  # misclassified without an attack: broken for both
    seen = []

    def broken(*chosen):
        def attack(images, labels):
            seen.append(torch.initial_seed())
            images = images.clone()
            images[list(chosen)] = 0.0  # the network then answers class 0
            return images

        return attack

    # The first breaks 1 to 8 with every seed, the second 9 with every seed, and 8 with the second seed alone.
    pair = lambda model, budget: {  # noqa: E731
        "biotorch": broken(*range(1, 9)),
        "torchattacks": broken(9, *([8] if budget.seed == 1 else [])),
    }
    monkeypatch.setitem(PAIRS, "pair", pair)
    found = strength.compare(torch.nn.Flatten(), images, labels, "pair", Budget(), seeds=2)
    assert seen == [0, 0, 1, 1]
    assert found == {
        "left %": pytest.approx(100 * 3 / 12),
        "theirs": pytest.approx(100 * 9.5 / 12),
        "ahead": 8,
        "behind": 1,
        "p": pytest.approx(2 * (9 + 1) / 2**9),
    }


TINY = {
    "step": "--networks le_net_mnist lstm --rules fa brsf kp wm dfa dkp shallow --batch 4 --rounds 1 --fused",
    "epoch": "--networks le_net_mnist --images 128 --rounds 1 --threads 1 --command --no-metrics",
    "memory": "--networks le_net_mnist --rules dfa --batch 32 --rounds 1",
    "scale": "--axes width length --sizes 8 16 32 --rules fa --rounds 1",
    "attacks": "--attacks FGSM PGD TPGD EOTPGD Square AutoPGD FewPixel --versions trained --images 2 --steps 2 "
    "--queries 10 --generations 1 --population 5 --training-steps 1 --rounds 1 --warm-up 0",
    "strength": "--networks cnn noisy_cnn --attacks FGSM EOTPGD --images 4 --seeds 1 --training-images 128",
    "jobs": "--networks le_net_mnist --batch 2 --seconds 0.01 --rounds 1",
    "sweep": "--points 2 --jobs 2 --images 64 --epochs 1 --rounds 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", TINY)
def test_every_subcommand_writes_records(benchmark, tmp_path):
    if benchmark == "strength" and not os.environ.get("BIOTORCH_DATA"):
        pytest.skip("BIOTORCH_DATA names no folder with MNIST")
    file = tmp_path / "records.json"
    command = [sys.executable, "-m", "benchmarks", benchmark, *TINY[benchmark].split(), "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert rows
    for row in rows:
        assert row["benchmark"] == benchmark
        assert row["date"]
        assert row["processor"]
        if benchmark == "memory":
            assert 0.5 < row["peak_memory_ratio"] < 2
        elif benchmark == "strength":
            assert 0 < row["figures"]["p"] <= 1
        else:
            assert 0 < row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
    assert len(done.stdout.splitlines()) == len(rows) + 4  # machine, empty line, heading, rule
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert f"<!-- {benchmark} -->\n\n- {rows[0]['date']}" in with_tables(text, load(file))
