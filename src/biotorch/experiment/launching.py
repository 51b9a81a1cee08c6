"""The processes of a run: whether others were started beside this one, and joining them."""

from __future__ import annotations

import os

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

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


def one_of_several() -> bool:
    """Whether torchrun or Slurm has started this process as one of the several of a run."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"]) > 1
    return SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
