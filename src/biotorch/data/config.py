"""The `data` section of a configuration."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, field_validator, model_validator

from biotorch._sections import Place, Section, place
from biotorch.data import sources
from biotorch.data.columns import Roles
from biotorch.data.images import Augmentation
from biotorch.data.splits import Kind, Task
from biotorch.errors import DataError, SectionError

#: Default side length in pixels of the crop of image files, and default number of characters per example of a text.
_SIDE, _WINDOW = 224, 128
#: Keys that only some kinds of data have. A key in the place of its default counts as not given.
_OWN_KEYS: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("target_size", "augment", "skip_corrupt", "check_contents"), ("images",)),
    "sequence_length": ("text",),
    **dict.fromkeys(("target", "test", "columns", "ignore", "categorical", "missing"), ("table",)),
    **dict.fromkeys(("standardise", "task"), ("table", "features")),
}
#: The name of each kind, and how a data set of this kind is described.
_KINDS: dict[Kind, tuple[str, str]] = {
    "images": ("images", "has images"),
    "text": ("texts (text:<path>)", "is a text"),
    "table": ("tables (table:<path>)", "is a table"),
    "features": ("float features (<path>.npz)", "has float features"),
}


class DataConfig(Section):
    """`data`: the data set, its split, the roles of its columns and its augmentation.

    Examples:
        >>> config = biotorch.data.DataConfig(dataset="digits", target_size=16)
        >>> config.validation, config.num_workers
        ('split', 0)
    """

    dataset: str
    """A name: `mnist`, `fashion_mnist`, `cifar10`, `cifar10_benchmark` (augmented as in the paper), `cifar100`,
    `imagenet`, `digits`, or the tables `wine`, `breast_cancer` and `diabetes`. Or a place: `folder:<path>` (class
    folders), `parquet:<path>` (a folder of images), `hf:<name>` (Hugging Face hub), `<path>.npz` (images or float
    features), `table:<path>` (a .csv, .csv.gz or .parquet file) or `text:<path>` (a file in UTF-8). Relative paths are
    looked for in the working folder, then in the folder of the data."""
    dataset_path: Place | None = None
    """Folder of the data; default: the environment variable BIOTORCH_DATA, else the user's cache folder. For imagenet
    it holds train/ and val/, or a folder imagenet/ with them."""
    target_size: int | None = Field(default=None, ge=1)
    """Side length in pixels to which images are resized. For image files (imagenet and folder:) it is the side length
    of the crop, by default 224."""
    sequence_length: int | None = Field(default=None, ge=1, le=10**9)
    """Characters per example of a text, by default 128."""
    target: str | list[str] | None = None
    """Column of a table to predict, or a list of several columns of numbers."""
    task: Task | None = None
    """Kind of prediction from a table or float features. By default floats, and several columns, are a regression;
    texts, booleans and integers are classes."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """Columns of a table that are inputs, by default all but the target."""
    ignore: list[str] = Field(default_factory=list)
    """Columns of a table that are no inputs."""
    categorical: list[str] = Field(default_factory=list)
    """Columns of integers in a table that are categories, as texts and booleans always are."""
    missing: Literal["refuse", "impute"] = "refuse"
    """Missing inputs of a table: an error, or the mean, or for categories the most frequent one, of the training
    split."""
    standardise: bool = True
    """Give the numbers of a table, or float features, a mean of 0 and a standard deviation of 1 on the training split.
    Of arrays (N, d) and (N, T, d) each of the d features has its own, of larger ones each channel (N, C, ...)."""
    test: str | None = None
    """File of a table for the test, with the same columns; by default a fifth of the rows is for the test."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes that read image files (imagenet and folder:); sets in memory need none."""
    batch_size: int | None = Field(default=None, ge=1, le=10**9)
    """Examples per batch in evaluation; the results do not depend on it."""
    validation: Literal["split", "test"] = "split"
    """Examples for validation. `split` holds out part of the training set (of a text, its end). `test` takes the test
    set, as the paper does for MNIST and Fashion-MNIST; the best epoch is then chosen on the test set, so its results
    are too good."""
    validation_size: int | None = Field(default=None, ge=1)
    """Number of held-out training examples; default: 180 of digits, 5,000 of MNIST, Fashion-MNIST and CIFAR, 10,000 of
    ImageNet, a fifth of the embedded tables, a tenth of other sets. For a text the number of held-out characters, by
    default 5 % of the whole."""
    augment: Augmentation | bool | None = None
    """Augmentation of the training images: true, false, or settings. Default: random resized crop and flip for image
    files (imagenet and folder:), crop and flip for cifar10_benchmark, none for other sets."""
    skip_corrupt: bool = False
    """Leave out image files that cannot be read, instead of ending with an error."""
    check_contents: bool = False
    """Read all image files (imagenet and folder:) once at the start, and tell data apart by their contents. Without it
    image files are told apart by names, sizes and modification times, and sets in memory always by their contents."""

    @field_validator("augment", mode="before")
    @classmethod
    def _switch_or_section(cls, value: object) -> object:
        if not isinstance(value, dict | bool | Augmentation | None):
            raise ValueError(f"true, false or a section such as {{crop: 4, flip: true}} is needed, not {value!r}")
        return value

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        place(sources.find(name)[1])
        return name

    @model_validator(mode="after")
    def _compatible(self) -> DataConfig:
        if self.validation == "test" and self.validation_size is not None:
            raise SectionError(
                {"validation_size": "nothing is held out if data.validation is test: remove one of the two"}
            )
        if problems := self.misplaced(self.kinds) or self._roles_collide():
            raise SectionError(problems)
        if not self.in_files and (problems := self._files_alone()):
            raise SectionError(problems)
        if self.in_files and isinstance(self.augment, Augmentation):
            raise SectionError(
                {
                    "augment": f"must be true or false for {self.dataset}: image files get a random resized crop and a "
                    "flip with fixed settings; only sets in memory have the settings crop and flip"
                }
            )
        return self

    def misplaced(self, kinds: Collection[Kind]) -> dict[str, str]:
        """Problems, by key, of settings that data of one of these kinds do not have."""
        told = self.described(kinds)
        return {
            key: f"a setting of {' and '.join(_KINDS[kind][0] for kind in owners)}, but {told}: leave it out"
            for key, owners in _OWN_KEYS.items()
            if self._given(key) and not set(owners) & set(kinds)
        }

    def _files_alone(self) -> dict[str, str]:
        """Problems of settings that only image files have, in a section with a set in memory."""
        keys = [key for key in ("skip_corrupt", "check_contents") if getattr(self, key)]
        text = f"has no effect on {self.dataset}, which is read into memory as a whole: leave it out"
        return dict.fromkeys(keys, text)

    def described(self, kinds: Collection[Kind]) -> str:
        """Clause that says of which of these kinds the data are, such as `text:a is a text`."""
        return f"{self.dataset} {' or '.join(_KINDS[kind][1] for kind in sorted(kinds))}"

    def _given(self, key: str) -> bool:
        off = False if key == "augment" else None  # an augmentation that is off is none
        return getattr(self, key) not in (DataConfig.model_fields[key].get_default(call_default_factory=True), off)

    def _roles_collide(self) -> dict[str, str]:
        """Problems, by key, of columns of a table that have two roles, or none."""
        roles, problems = self.roles, {}
        if "table" in self.kinds and not roles.target:
            problems["target"] = "missing; name the column to predict, such as data.target=price"
        for key in ("target", "columns", "ignore", "categorical"):
            names = list(getattr(roles, key) or ())
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                problems[key] = f"names {', '.join(map(repr, twice))} more than once"
            if key != "target" and (both := [name for name in names if name in roles.target]):
                problems[key] = f"{', '.join(map(repr, both))} cannot also be the target"
        if self.columns and self.ignore:
            problems["ignore"] = "data.columns names all inputs: give only one of the two"
        others = [name for name in self.categorical if name in self.ignore or name not in (self.columns or [name])]
        if others:
            problems["categorical"] = f"{', '.join(map(repr, others))} is no input"
        return problems

    @property
    def roles(self) -> Roles:
        """Roles of the columns of a table."""
        target = self.target or sources.find(self.dataset)[0].target or ()
        names = (target,) if isinstance(target, str) else tuple(target)
        return Roles(names, self.columns, self.ignore, self.categorical, self.missing, self.task)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        try:
            source, _ = sources.find(str(found.get("dataset")))
        except ValueError:
            return found
        if found["augment"] is None or isinstance(found["augment"], bool):
            wanted = source.augmented if found["augment"] is None else found["augment"]
            found["augment"] = Augmentation.completed({}) if wanted else None
        defaults = {
            "target_size": _SIDE if source.in_files else None,
            "sequence_length": _WINDOW if "text" in source.kinds else None,
            "target": source.target,
            "validation_size": source.validation_size if found["validation"] == "split" else None,
        }
        return found | {key: default for key, default in defaults.items() if found[key] is None}

    @property
    def folder(self) -> Path:
        """Folder that holds the files, or into which they are downloaded."""
        chosen = self.dataset_path or os.environ.get("BIOTORCH_DATA") or platformdirs.user_cache_dir("biotorch")
        try:
            return place(chosen)
        except ValueError as error:
            raise DataError(f"the folder of the data, BIOTORCH_DATA: {error}") from error

    @property
    def in_files(self) -> bool:
        """Whether images are read from files when they are needed, instead of all into memory."""
        return sources.find(self.dataset)[0].in_files

    @property
    def kinds(self) -> frozenset[Kind]:
        """Possible kinds of the examples; only its content shows whether an .npz file holds images or features."""
        return sources.find(self.dataset)[0].kinds

    @property
    def is_image(self) -> bool:
        """Whether examples may be images."""
        return "images" in self.kinds

    @property
    def is_text(self) -> bool:
        """Whether examples are windows of a text."""
        return "text" in self.kinds

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per batch in evaluation."""
        return self.batch_size or 500

    @property
    def side(self) -> int:
        """Side length in pixels of the crop of image files."""
        return self.target_size or _SIDE

    @property
    def window(self) -> int:
        """Characters per example of a text."""
        return self.sequence_length or _WINDOW

    @property
    def augmentation(self) -> Augmentation | None:
        """Augmentation of the training images, or None. For image files only whether it is None matters."""
        if isinstance(self.augment, Augmentation):
            return self.augment if self.augment.crop or self.augment.flip else None
        wanted = sources.find(self.dataset)[0].augmented if self.augment is None else self.augment
        return Augmentation() if wanted else None
