"""The `data` section of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, field_validator, model_validator

from biotorch._sections import Place, Section, place
from biotorch.data import sources
from biotorch.data.images import Augmentation
from biotorch.errors import DataError, SectionError


class DataConfig(Section):
    """`data`: the data set, its split and its augmentation."""

    dataset: str
    """A name: `mnist`, `fashion_mnist`, `cifar10`, `cifar10_benchmark` (augmented as in the paper), `cifar100`,
    `imagenet` or `digits`. Or a place: `folder:<path>` (class folders), `parquet:<path>` (a folder), `hf:<name>`
    (Hugging Face hub), `<path>.npz` or `text:<path>` (a file in UTF-8). Relative paths are looked for in the working
    folder, then in the folder of the data."""
    dataset_path: Place | None = None
    """Folder of the data; default: the environment variable BIOTORCH_DATA, else the user's cache folder. For imagenet
    it holds train/ and val/, or a folder imagenet/ with them."""
    target_size: int | None = Field(default=None, ge=1)
    """Side length in pixels to which images are resized. For image files (imagenet and folder:) it is the side length
    of the crop, by default 224."""
    sequence_length: int | None = Field(default=None, ge=1, le=10**9)
    """Characters per example of a text, by default 128."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes that read image files (imagenet and folder:); sets in memory need none."""
    batch_size: int | None = Field(default=None, ge=1, le=10**9)
    """Examples per batch in evaluation; the results do not depend on it."""
    validation: Literal["split", "test"] = "split"
    """Examples for validation. `split` holds out part of the training set (of a text, its end). `test` takes the test
    set, as the paper does for MNIST and Fashion-MNIST; the best epoch is then chosen on the test set, so its results
    are too good."""
    validation_size: int | None = Field(default=None, ge=1)
    """Number of held-out training images; default: 180 of digits, 5,000 of MNIST, Fashion-MNIST and CIFAR, 10,000 of
    ImageNet, a tenth of other sets. For a text the number of held-out characters, by default 5 % of the whole."""
    augment: Augmentation | bool | None = None
    """Augmentation of the training images: true, false, or settings. Default: random resized crop and flip for image
    files (imagenet and folder:), crop and flip for cifar10_benchmark, none for other sets."""
    skip_corrupt: bool = False
    """Leave out image files that cannot be read, instead of ending with an error."""

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
        if problems := self._images_alone() if self.is_text else self._texts_alone():
            raise SectionError(problems)
        if self.skip_corrupt and not self.in_files:
            raise SectionError(
                {"skip_corrupt": f"has no effect on {self.dataset}, which is read into memory as a whole: leave it out"}
            )
        if self.in_files and isinstance(self.augment, Augmentation):
            raise SectionError(
                {
                    "augment": f"must be true or false for {self.dataset}: image files get a random resized crop and a "
                    "flip with fixed settings; only sets in memory have the settings crop and flip"
                }
            )
        return self

    def _images_alone(self) -> dict[str, str]:
        """Problems of settings that only images have, in a section with a text."""
        keys = [key for key in ("target_size", "augment", "skip_corrupt") if getattr(self, key)]
        return {key: f"a setting of images, but {self.dataset} is a text: leave it out" for key in keys}

    def _texts_alone(self) -> dict[str, str]:
        """Problems of settings that only texts have, in a section with images."""
        if self.sequence_length is None:
            return {}
        return {"sequence_length": f"a setting of texts (text:<path>), but {self.dataset} has images: leave it out"}

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
    def is_text(self) -> bool:
        """Whether examples are windows of a text instead of images."""
        return sources.find(self.dataset)[0].is_text

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per batch in evaluation."""
        return self.batch_size or 500

    @property
    def side(self) -> int:
        """Side length in pixels of the crop of image files."""
        return self.target_size or 224

    @property
    def window(self) -> int:
        """Characters per example of a text."""
        return self.sequence_length or 128

    @property
    def augmentation(self) -> Augmentation | None:
        """Augmentation of the training images, or None. For image files only whether it is None matters."""
        if isinstance(self.augment, Augmentation):
            return self.augment if self.augment.crop or self.augment.flip else None
        wanted = sources.find(self.dataset)[0].augmented if self.augment is None else self.augment
        return Augmentation() if wanted else None
