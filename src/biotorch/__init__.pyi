"""biotorch: train any PyTorch network without weight transport, and know honestly how well it does."""

from biotorch import data as data
from biotorch import errors as errors
from biotorch import experiment as experiment
from biotorch import layers as layers
from biotorch import metrics as metrics
from biotorch import models as models
from biotorch import module as module
from biotorch import plots as plots
from biotorch import report as report
from biotorch import results as results
from biotorch import robustness as robustness
from biotorch import rules as rules
from biotorch import testing as testing
from biotorch import training as training
from biotorch.auditing import Audit as Audit
from biotorch.auditing import audit as audit
from biotorch.conversion.convert import convert as convert
from biotorch.conversion.revert import revert as revert
from biotorch.conversion.summary import Summary as Summary
from biotorch.conversion.summary import summary as summary
from biotorch.errors import AuditError as AuditError
from biotorch.errors import BiotorchError as BiotorchError
from biotorch.errors import ConversionError as ConversionError
from biotorch.errors import ConversionWarning as ConversionWarning
from biotorch.experiment.network import load as load
from biotorch.kernel.teaching import targets as targets
from biotorch.layers import clip_grad_norm_ as clip_grad_norm_
from biotorch.layers import feedback_parameters as feedback_parameters
from biotorch.layers import register_layer as register_layer
from biotorch.layers import true_gradients as true_gradients
from biotorch.layers import updated as updated
from biotorch.manhattan import batch_manhattan as batch_manhattan
from biotorch.module import BioModule as BioModule

__version__: str
