"""Where things lie, so that a test may move without counting folders."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
