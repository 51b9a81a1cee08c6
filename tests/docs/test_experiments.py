"""docs/experiments.md tells all keys of a configuration, and no others."""

import re

from places import ROOT
from pydantic import BaseModel

from biotorch.experiment import Config


def keys(section, path=()):
    """Key paths of all fields, sections that are described as a whole not taken apart."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        below = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        whole = name in ("optimizer", "lr_scheduler", "early_stop", "augment")
        if below is None or whole:
            yield ".".join((*path, name))
        else:
            yield from keys(below, (*path, name))


def test_every_key_is_described_once():
    table = (ROOT / "docs" / "experiments.md").read_text().split("## Keys")[1].split("\n## ")[0]
    described = re.findall(r"^\| `([\w.]+)` \|", table, flags=re.MULTILINE)
    assert sorted(described) == sorted(keys(Config))
