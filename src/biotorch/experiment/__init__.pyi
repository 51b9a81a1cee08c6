"""From a configuration file to results on disk."""

from biotorch.errors import BrokenPointsError as BrokenPointsError
from biotorch.errors import CheckpointError as CheckpointError
from biotorch.errors import ConfigError as ConfigError
from biotorch.errors import DamagedResultError as DamagedResultError
from biotorch.errors import Failure as Failure
from biotorch.errors import Interrupted as Interrupted
from biotorch.errors import LockedError as LockedError
from biotorch.errors import OtherRunError as OtherRunError
from biotorch.experiment.config import Config as Config
from biotorch.experiment.display import Display as Display
from biotorch.experiment.folder import RunFolder as RunFolder
from biotorch.experiment.network import load as load
from biotorch.experiment.point import run_point as run_point
from biotorch.experiment.reading import Study as Study
from biotorch.experiment.reading import read as read
from biotorch.experiment.results import load_results as load_results
from biotorch.experiment.study import run as run
