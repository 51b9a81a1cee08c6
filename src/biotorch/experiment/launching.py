"""The processes of a run, with mistakes told as those of its configuration."""

from __future__ import annotations

from lightning_fabric import Fabric

from biotorch.experiment.config import Config
from biotorch.experiment.reading import ConfigError
from biotorch.frozen import SectionError
from biotorch.training import launch


def launched(config: Config) -> Fabric:
    """Start, or join, the processes. Raises ConfigError where `infrastructure` does not fit what was started."""
    try:
        return launch(config.infrastructure)
    except SectionError as error:
        raise ConfigError(f"infrastructure: {error}") from error
