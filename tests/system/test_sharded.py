"""DDP, ZeRO and FSDP2 in a user's own loop: W and B are those of one process."""

import subprocess

import pytest
import torch
from networks import mlp
from places import HELPERS
from torchrun import TORCHRUN

from biotorch.testing import assert_close

WORKER = HELPERS / "sharded_worker.py"
RULES = ("kp", "dkp", "brsf", "wm")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    file = tmp_path_factory.mktemp("sharded") / "found"
    command = [*TORCHRUN, WORKER, file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(f"{file}.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("how", ["ZeRO", "FSDP2"])
@pytest.mark.parametrize("rule", RULES)
def test_two_processes_have_w_and_b_of_one(found, rule, how):
    for each in found:
        assert_close(each[rule][how], each[rule]["alone"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["sa", "wm"])
def test_what_one_process_alone_looks_at_changes_nothing(found, rule):
    for each in found:
        assert_close(each[rule]["looked at"], each[rule]["alone"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["kp", "dkp"])
def test_ddp_waits_for_no_b_of_a_frozen_w(found, rule):
    torch.manual_seed(0)
    plain = mlp().double()
    for each in found:
        state = each[rule]["frozen"]
        assert torch.equal(state["0.weight"], plain[0].weight)
        assert not torch.equal(state["2.weight"], plain[2].weight)
        assert not torch.equal(state["2.feedback"], each[rule]["alone"]["2.feedback"])


def test_what_cannot_be_seen_in_shards_is_told_or_refused(found):
    for each in found:
        assert "biotorch.updated(model) once after every optimizer step" in each["unseen"]
        assert "constrain_weights cannot rescale a sharded weight" in each["constrained"]
