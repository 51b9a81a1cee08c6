"""The families of networks that conversion is tried on, and what becomes of each: the rows of docs/families.md.

python tests/helpers/families.py torchvision transformers timm > rows.jsonl   # half an hour; or parts of names
python tests/helpers/families.py --table rows.jsonl ... > docs/families.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import biotorch
from biotorch.conversion import nested
from biotorch.layers import FeedbackLayer

RULES = ("fa", "dfa", "usf")


@dataclasses.dataclass(frozen=True)
class Family:
    """One network of a family, as small as it comes, with a batch."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor] | tuple[Tensor, ...]]
    #: Auxiliary heads run in training mode only; all others are looked at in evaluation mode.
    training: bool = False


def _images(size: int, batch: int = 2) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, size, size),)


def _tokens(length: int = 12) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 99, (2, length))}


def _torchvision(name: str, size: int = 64, training: bool = False, batch: int = 2, **arguments: Any) -> Family:
    build = partial(torchvision.models.get_model, name, num_classes=10, **arguments)
    return Family(f"torchvision {name}", build, partial(_images, size, batch), training)


def _small_maxvit() -> nn.Module:
    """maxvit_t takes 224 pixels and nothing less."""
    return torchvision.models.MaxVit(
        input_size=(64, 64),
        stem_channels=8,
        partition_size=2,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )


TORCHVISION = [
    _torchvision("alexnet"),
    _torchvision("convnext_tiny", 32),
    _torchvision("densenet121", 32),
    _torchvision("efficientnet_b0", 32),
    _torchvision("efficientnet_v2_s", 32),
    _torchvision("googlenet", 64, training=True, batch=4, init_weights=False),
    _torchvision("inception_v3", 75, aux_logits=False, init_weights=False),
    Family("torchvision maxvit", _small_maxvit, partial(_images, 64)),
    _torchvision("mnasnet0_5", 32),
    _torchvision("mobilenet_v2", 32),
    _torchvision("mobilenet_v3_small", 32),
    _torchvision("regnet_y_400mf", 32),
    _torchvision("resnet18", 32),
    _torchvision("resnext50_32x4d", 32),
    _torchvision("shufflenet_v2_x0_5", 32),
    _torchvision("squeezenet1_1"),
    _torchvision("swin_t"),
    _torchvision("swin_v2_t"),
    _torchvision("vgg11", 32),
    _torchvision("vit_b_16", image_size=64),
    _torchvision("wide_resnet50_2", 32),
]

#: timm names with the side length of the images and, where it may be chosen, arguments that make them small.
_TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 2}),
    "convnextv2_atto": (32, {}),
    "cs3darknet_s": (64, {}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "dla34": (32, {}),
    "edgenext_xx_small": (64, {}),
    "efficientnet_lite0": (32, {}),
    "efficientvit_b0": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 2}),
    "fastvit_t8": (64, {}),
    "ghostnet_050": (32, {}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "inception_next_atto": (64, {}),
    "lcnet_050": (32, {}),
    "levit_128s": (224, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mobilenetv3_small_050": (32, {}),
    "mobilevit_xxs": (64, {}),
    "nf_regnet_b0": (32, {}),
    "poolformer_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "regnetx_002": (32, {}),
    "repvgg_a0": (32, {}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "resnet10t": (32, {}),
    "resnetv2_50": (32, {}),
    "rexnet_100": (32, {}),
    "sequencer2d_s": (64, {"img_size": 64}),
    "skresnet18": (32, {}),
    "starnet_s1": (32, {}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56}),
    "tf_efficientnet_lite0": (32, {}),
    "tinynet_e": (32, {}),
    "twins_svt_small": (64, {"img_size": 64}),
    "vgg11": (32, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
}


#: LeViT keeps its attention bias, with its graph, from one evaluation to the next.
_TRAINING = {"levit_128s"}


def timm_families() -> list[Family]:
    """Raises ModuleNotFoundError where timm is not installed."""
    import timm

    return [
        Family(
            f"timm {name}",
            partial(timm.create_model, name, num_classes=10, **arguments),
            partial(_images, size),
            training=name in _TRAINING,
        )
        for name, (size, arguments) in _TIMM.items()
    ]


def hugging_face_families() -> list[Family]:
    """Raises ModuleNotFoundError where transformers is not installed."""
    import transformers as hf

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {"vocab_size": 99, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return [
        Family("transformers BERT", lambda: hf.BertForSequenceClassification(hf.BertConfig(**small, **text)), _tokens),
        Family(
            "transformers GPT-2",
            lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, use_cache=False, **text)),
            _tokens,
        ),
        Family(
            "transformers ViT",
            lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, **small)),
            partial(_images, 32),
        ),
        Family(
            "transformers T5 encoder",
            lambda: hf.T5EncoderModel(hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, **text)),
            _tokens,
        ),
        Family(
            "transformers DistilBERT",
            lambda: hf.DistilBertForSequenceClassification(
                hf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **text)
            ),
            _tokens,
        ),
        Family(
            "transformers ConvNeXt",
            lambda: hf.ConvNextForImageClassification(
                hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
            ),
            partial(_images, 32),
        ),
        Family(
            "transformers OPT",
            lambda: hf.OPTForCausalLM(
                hf.OPTConfig(
                    hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2, use_cache=False, **text
                )
            ),
            _tokens,
        ),
        Family(
            "transformers Llama",
            lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**small, **text, use_cache=False)),
            _tokens,
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one family did under one rule. `problem` is empty where all of it worked."""

    converted: int = 0
    #: Reasons by the name of the layer.
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    leak: float | None = None
    #: The audit's verdicts on the converted layers.
    verdicts: tuple[str, ...] = ()
    #: The largest share of gradient past the feedback, and where.
    past: float = 0.0
    where: str = ""
    problem: str = ""


def examine(family: Family, rule: str) -> Outcome:
    """Convert, run forwards and backwards, look at every converted layer's gradient, audit."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = family.build().train(family.training)
        for parameter in model.parameters():
            if not parameter.any():  # a branch or head that starts at zero passes no gradient before the first update
                nn.init.normal_(parameter, std=0.1)
        inputs = family.inputs()
        outcome = Outcome()
        try:
            biotorch.convert(model, rule)
            layers = {name: m for name, m in model.named_modules() if isinstance(m, FeedbackLayer)}
            left = {row.name: row.note for row in biotorch.summary(model).left}
            outcome = Outcome(converted=len(layers), left=left)
            args, kwargs = nested.arguments(inputs)
            nested.functional(model(*args, **kwargs), torch.Generator().manual_seed(0)).backward()
            bad = [
                f"{name}.{each.parameter}"
                for name, layer in layers.items()
                for each in layer.connections
                if each.trained.grad is None or not each.trained.grad.isfinite().all() or not each.trained.grad.any()
            ]
            if bad:
                return dataclasses.replace(outcome, problem=f"no gradient in {', '.join(bad)}")
            found = biotorch.audit(model, inputs, shortcuts=rule == "dfa")
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            return dataclasses.replace(outcome, problem=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    where = max(found.shortcuts, key=found.shortcuts.__getitem__, default="")
    verdicts = tuple({str(found.layers[name]) for name in layers if found.layers[name].upstream})
    past = found.shortcuts.get(where, 0.0)
    return dataclasses.replace(outcome, leak=found.leak, verdicts=verdicts, past=past, where=where)


def table(rows: list[dict[str, Any]]) -> str:
    """docs/families.md from the rows of all families under all rules."""
    by_family: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], {})[row["rule"]] = row
    order = [family.name for family in every_family()]
    lines = [_line(name, by_family[name]) for name in order if name in by_family]
    return f"""# Families of networks

What `biotorch.convert` makes of each family under `fa`, `dfa` and `usf`: the layers converted, what is left on
backpropagation, and the audit's leak (0 nothing, 0.5 signs, 1 weights are transported). In every row, unless it says
otherwise, a forward and a backward gave every weight matrix of every converted layer a finite gradient that is not
zero. "Past the feedback" is the largest share of the gradient under `dfa` (shortcuts kept) that reaches a layer or
block by identity paths or parallel branches; `shortcuts="cut"` closes those of the common residual blocks, and
`blocks=[...]` those it names.

The networks are the smallest of their families, with random weights, some with fewer blocks. The rows are made by
`tests/helpers/families.py` (torch {torch.__version__.split("+")[0]},
torchvision {torchvision.__version__.split("+")[0]}).

| family | converted | left on backpropagation | leak fa | dfa | usf | past the feedback under dfa |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


def _line(name: str, by_rule: dict[str, dict[str, Any]]) -> str:
    first = by_rule["fa"]
    reasons = sorted(set(first["left"].values()))
    left = f"{len(first['left'])}: {'; '.join(reasons)}" if reasons else "-"
    leaks = [
        by_rule[rule]["problem"] or ("-" if by_rule[rule]["leak"] is None else f"{by_rule[rule]['leak']:.2f}")
        for rule in RULES
    ]
    past = f"{by_rule['dfa']['past']:.0%} at {by_rule['dfa']['where']}" if by_rule["dfa"]["past"] else "-"
    return f"| {name} | {first['converted']} | {left} | {' | '.join(leaks)} | {past} |"


def every_family() -> list[Family]:
    """Those of the libraries that are installed."""
    found = list(TORCHVISION)
    for library in (hugging_face_families, timm_families):
        with contextlib.suppress(ModuleNotFoundError):
            found += library()
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--table"]:
        rows = [json.loads(line) for path in arguments[1:] for line in Path(path).read_text().splitlines()]
        print(table(rows), end="")
        return
    for family in every_family():
        if any(part in family.name for part in arguments):
            for rule in RULES:
                row = {"family": family.name, "rule": rule, **dataclasses.asdict(examine(family, rule))}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
