"""The `data` section of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, field_validator, model_validator

from biotorch._sections import Section
from biotorch.data import sources
from biotorch.data.images import Augmentation
from biotorch.errors import SectionError


class DataConfig(Section):
    """The `data` section of a configuration."""

    dataset: str
    """`mnist`, `fashion_mnist`, `cifar10`, `cifar10_benchmark` (augmented as in the paper), `cifar100`,
    `imagenet`, `digits`, or `folder:<path>` of class folders, `parquet:<path>` of a folder, `hf:<name>`
    on the Hugging Face hub, `<path>.npz`, `text:<path>` of a file in UTF-8. A relative path starts at the
    working folder or at `folder`."""
    dataset_path: Path | None = None
    """Folder of the data; default: the environment variable BIOTORCH_DATA, else the user's cache folder.
    For imagenet: the one with train/ and val/, by default imagenet/ in that folder."""
    target_size: int | None = Field(default=None, ge=1)
    """Side length in pixels that images are resized to; for sets in files (imagenet and folder:) that of
    the crop, by default 224."""
    sequence_length: int | None = Field(default=None, ge=1, le=10**9)
    """Characters per example of a text, by default 128."""
    num_workers: int = Field(default=0, ge=0)
    """Worker processes that read sets in files; sets in memory need none."""
    batch_size: int | None = Field(default=None, ge=1, le=10**9)
    """Examples per batch in evaluation; no figure depends on it."""
    validation: Literal["split", "test"] = "split"
    """`split`: hold out part of the training set, of a text its end. `test`: the test set itself, as the
    paper has it for MNIST and Fashion-MNIST; the best epoch is then chosen on the test set, which flatters
    every figure."""
    validation_size: int | None = Field(default=None, ge=1)
    """Training images that are held out; default: 180 of digits, 5,000 of MNIST, Fashion-MNIST and
    CIFAR, 10,000 of ImageNet, a tenth of other sets. Of a text its characters, by default 5 % of the whole."""
    augment: Augmentation | bool | None = None
    """Augmentation of the training images; true: the usual one, false: none, default: what is usual for
    the set (cifar10_benchmark: crop and flip; sets in files: random resized crop and flip)."""
    skip_corrupt: bool = False
    """Leave out images of sets in files that cannot be read, instead of stopping there."""

    @field_validator("augment", mode="before")
    @classmethod
    def _switch_or_section(cls, value: object) -> object:
        if not isinstance(value, dict | bool | Augmentation | None):
            raise ValueError(f"true, false or a section such as {{crop: 4, flip: true}}, not {value!r}")
        return value

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        sources.find(name)
        return name

    @model_validator(mode="after")
    def _compatible(self) -> DataConfig:
        if self.validation == "test" and self.validation_size is not None:
            raise SectionError(
                {"validation_size": "nothing is held out where data.validation is test: remove one of the two"}
            )
        if problems := self._images_alone() if self.is_text else self._texts_alone():
            raise SectionError(problems)
        if self.skip_corrupt and not self.in_files:
            raise SectionError({"skip_corrupt": f"{self.dataset} is read into memory as a whole: nothing is skipped"})
        if self.in_files and isinstance(self.augment, Augmentation):
            raise SectionError(
                {
                    "augment": f"true or false for {self.dataset}: images in files get a random resized crop and a "
                    "flip, whose settings are fixed; crop and flip are settings of sets in memory"
                }
            )
        return self

    def _images_alone(self) -> dict[str, str]:
        """What is set that has no meaning for a text."""
        keys = [key for key in ("target_size", "augment", "skip_corrupt") if getattr(self, key)]
        return {key: f"a setting of images, and {self.dataset} is a text: leave it out" for key in keys}

    def _texts_alone(self) -> dict[str, str]:
        """What is set that has no meaning for images."""
        if self.sequence_length is None:
            return {}
        return {"sequence_length": f"a setting of texts (text:<path>), and {self.dataset} has images: leave it out"}

    @property
    def folder(self) -> Path:
        """Where the files are, or are downloaded to."""
        chosen = self.dataset_path or os.environ.get("BIOTORCH_DATA") or platformdirs.user_cache_dir("biotorch")
        return Path(chosen).expanduser()

    @property
    def in_files(self) -> bool:
        """Whether images are read from files as they are needed, instead of all into memory."""
        return sources.find(self.dataset)[0].in_files

    @property
    def is_text(self) -> bool:
        """Whether examples are windows of a text instead of images."""
        return sources.find(self.dataset)[0].is_text

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per batch in evaluation."""
        return self.batch_size or 500

    @property
    def side(self) -> int:
        """Side length of the crop of sets in files."""
        return self.target_size or 224

    @property
    def window(self) -> int:
        """Characters per example of a text."""
        return self.sequence_length or 128

    @property
    def augmentation(self) -> Augmentation | None:
        """That of the training images; for sets in files, whose augmentation has no settings, whether there is one."""
        if isinstance(self.augment, Augmentation):
            return self.augment if self.augment.crop or self.augment.flip else None
        wanted = sources.find(self.dataset)[0].augmented if self.augment is None else self.augment
        return Augmentation() if wanted else None
