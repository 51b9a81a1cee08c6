"""A command that watches its Slurm jobs until Ctrl-C, for executors/test_slurm.py.

python tests/helpers/slurm_worker.py FOLDER OVERRIDE ...
"""

import sys
from pathlib import Path

import runs

from biotorch.experiment import Interrupted, run
from biotorch.experiment.executors.slurm import Slurm


def main(folder: str, *overrides: str) -> None:
    quick = runs.quick(Path(folder), *overrides)
    try:
        run(quick, executor=Slurm(quick.folder, 1))
    except Interrupted:
        print("stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
