"""A converted model under trainers that know nothing of biotorch: bare DDP, pytorch_lightning, transformers."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from networks import TRAINING, batch, labels, mlp
from places import HELPERS
from rule_names import without_decay
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchrun import TORCHRUN

import biotorch
from biotorch.layers import FeedbackLayer

pytestmark = pytest.mark.usefixtures("targets")


def draws(model: torch.nn.Module) -> set[int]:
    return {layer.feedback_draws for layer in model.modules() if isinstance(layer, FeedbackLayer)}


def unmoved(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@pytest.fixture(scope="module")
def by_ddp(tmp_path_factory):
    """What both processes have found, by rule."""
    folder, env = tmp_path_factory.mktemp("ddp"), {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*TORCHRUN, HELPERS / "bare_ddp.py", folder, "dfa", "brsf"], check=True, env=env, timeout=200)
    return {rule: [torch.load(folder / f"{rule}.{rank}") for rank in (0, 1)] for rule in ("dfa", "brsf")}


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_a_bare_ddp_loop_trains_one_network_on_two_processes(rule, by_ddp):
    first, second = by_ddp[rule]
    assert all(first["moved"].values())
    assert first["draws"] == ([3, 3, 3] if rule == "brsf" else [0, 0, 0])
    for name, value in first["state"].items():
        if not name.endswith("feedback_draws"):  # each rank's own seed, of which rank 0's is the one that counts
            assert torch.equal(value, second["state"][name]), name


@without_decay
@pytest.mark.filterwarnings("ignore:The `srun` command is available on your system but is not used:UserWarning")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
@pytest.mark.parametrize("rule", TRAINING)
def test_pytorch_lightning_trains_every_layer_and_redraws_once_per_update(rule):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = biotorch.convert(mlp(), rule)

        def training_step(self, examples, index):
            return F.cross_entropy(self.net(examples[0]), examples[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(batch(32), labels(32)), batch_size=8))
    assert unmoved(module, before) == []
    assert draws(module) == ({2} if biotorch.rules.get(rule).has_update() else {0})


@pytest.mark.parametrize("rule", ["dfa", "brsf"])
def test_transformers_trains_every_layer_and_its_checkpoint_comes_back(rule, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    safetensors = pytest.importorskip("safetensors.torch")

    def bert() -> torch.nn.Module:
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(vocab_size=50, num_labels=3, **small)
        return biotorch.convert(transformers.BertForSequenceClassification(config), rule)

    model = bert()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    examples = [{"input_ids": torch.randint(1, 50, (7,)), "labels": index % 3} for index in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    assert unmoved(model, before) == []
    assert draws(model) == ({2} if rule == "brsf" else {0})

    trainer.save_model(str(tmp_path / "saved"))
    fresh = bert()
    fresh.load_state_dict(safetensors.load_file(tmp_path / "saved" / "model.safetensors"))
    expected = model.state_dict()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, expected[name]), name
