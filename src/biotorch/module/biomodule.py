"""The paper's wrapper (section 3.1): `BioModule(module=alexnet(), mode='frsf')`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from biotorch.conversion.convert import convert
from biotorch.rules import from_layer_config


class BioModule(nn.Module):
    """A module under a learning rule, converted in place and kept as `.module`.

    Args:
        module: any module.
        mode: a rule's name.
        copy_weights: keep the module's weights; if False, draw them by the rule's `init`.
        layer_config: `{"type": ..., "options": {...}}` with the rule's options; it is never changed.
        output_dim: size of the output; not needed, only checked.

    Raises:
        ValueError: `layer_config["type"]` names another rule than `mode`.
        ConversionError: the module cannot be converted, see `biotorch.convert`.

    Examples:
        >>> model = biotorch.BioModule(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), mode="usf")
        >>> model(torch.randn(4, 8)).shape, model.module[0].rule.name
        (torch.Size([4, 3]), 'usf')
    """

    def __init__(
        self,
        module: nn.Module,
        mode: str = "fa",
        copy_weights: bool = True,
        layer_config: dict[str, Any] | None = None,
        output_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        rule = from_layer_config(layer_config, mode)
        self.module = convert(module, rule, copy_weights=copy_weights, output_dim=output_dim)

    def forward(self, x: Any, targets: Tensor | None = None, loss_function: Any = None) -> Any:
        """Compute the module's output. `targets` and `loss_function` are accepted but not used."""
        return self.module(x)
