"""docs/networks.md: its table of layers is complete."""

import re

from places import ROOT
from torch import nn

from biotorch.layers import LAYER_TYPES

TEXT = (ROOT / "docs" / "networks.md").read_text()


def test_every_layer_type_of_torch_is_in_the_table():
    table = TEXT.split("## What becomes of a layer")[1].split("##")[0]
    for layer_type in LAYER_TYPES:
        if layer_type.__module__.startswith("torch."):
            name = re.sub(r"[123]d$", "", layer_type.__name__)
            assert name in table, name
    assert nn.MultiheadAttention in LAYER_TYPES
