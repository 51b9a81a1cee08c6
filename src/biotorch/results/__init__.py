"""Results on disk as pandas frames: one row per run, mean and spread over seeds, paired differences.

import biotorch
runs = biotorch.results.load("runs/quickstart")
biotorch.results.summary(runs)
biotorch.results.paired(runs, baseline="backpropagation")
"""

from biotorch.results.frames import COLUMNS, load, paired, summary

__all__ = ["COLUMNS", "load", "paired", "summary"]
