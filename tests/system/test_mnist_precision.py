"""On real MNIST, bf16 autocast learns what fp32 learns."""

import os

import pytest
from places import ROOT

from biotorch.experiment import read, run

CONFIG = ROOT / "configs" / "paper" / "mnist" / "le_net.yaml"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("BIOTORCH_DATA"), reason="BIOTORCH_DATA names no folder with MNIST"),
]


@pytest.mark.timeout(900)
def test_bf16_reaches_the_error_of_fp32_within_half_a_point(tmp_path):
    overrides = [
        f"experiment.output_dir={tmp_path}",
        "training.hyperparameters.epochs=3",
        "infrastructure.threads=1",
        "model.mode.type=usf",
        "training.optimizer.lr=0.003",
    ]
    errors = []
    for precision in ("32", "bf16-mixed"):
        settings = [*overrides, f"infrastructure.precision={precision}", f"experiment.name=precision_{precision}"]
        (result,) = run(read(CONFIG, settings)).values()
        errors.append(result["test"]["error"])
    assert abs(errors[1] - errors[0]) <= 0.5
    assert 0.5 < errors[0] < 5
