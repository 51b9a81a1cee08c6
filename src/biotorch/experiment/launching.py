"""Starting, or joining, the processes of a run that a configuration describes."""

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
