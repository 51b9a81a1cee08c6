"""Sets in files: folders of classes, images of all shapes and colours, damaged ones, worker processes."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from data_cases import together, untouched_randomness
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from biotorch import data

SIZE = 32
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
#: Width, height and Pillow's mode: the forms that ImageNet's files have.
FORMS = [(500, 375, "RGB"), (375, 500, "RGB"), (300, 400, "L"), (320, 240, "CMYK")]


def picture(path, width=64, height=48, mode="RGB", seed=0):
    """An image file with a smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)


def cut(path):
    """Truncates a file to the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path):
    """train/ with 6 images of each of two classes and test/ with 3, in the forms of ImageNet."""
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                width, height, mode = FORMS[index % len(FORMS)]
                picture(tmp_path / part / name / f"{index}.JPEG", width, height, mode, seed=10 * index + label)
    picture(tmp_path / "test" / "bee" / "palette.png", 90, 60, "P")
    picture(tmp_path / "test" / "bee" / "transparent.png", 60, 90, "RGBA")
    return tmp_path


def load(folder, **keys):
    keys = {"target_size": SIZE, "validation_size": 3, **keys}
    return data.load(data.DataConfig(dataset=f"folder:{folder}", **keys), seed=0)


def path_of(split, index):
    return split.paths.full(index)


def test_a_folder_of_classes_becomes_three_splits(folder):
    loaded = load(folder)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [9, 3, 8]
    assert loaded.num_outputs == 2
    assert loaded.train.input_shape == (3, SIZE, SIZE)
    assert loaded.record["augment"] == {"random_resized_crop": SIZE, "flip": True}
    for split in (loaded.train, loaded.validation, loaded.test):
        names = [os.path.basename(os.path.dirname(path_of(split, index))) for index in range(len(split))]
        assert [("ant", "bee")[label] for label in split.labels] == names
    train, validation = ({path_of(split, i) for i in range(len(split))} for split in (loaded.train, loaded.validation))
    assert not train & validation
    assert len(train | validation) == 12


def test_the_plain_view_is_resize_and_centre_crop_normalised(folder):
    split = load(folder).test
    images, labels = together(split.in_order(3))
    assert images.dtype == torch.float32
    assert next(split.in_order(3))[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, split.labels)
    for index, image in enumerate(images):
        with Image.open(path_of(split, index)) as opened:
            rgb = opened.convert("RGB")
        scale = round(SIZE * 256 / 224) / min(rgb.size)
        small = rgb.resize([int(side * scale) for side in rgb.size], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(v2.functional.center_crop(small, [SIZE, SIZE]))).double() / 255
        expected = ((pixels - MEAN) / STD).permute(2, 0, 1)
        torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)


def test_the_default_crop_is_the_papers(folder):
    images, _ = next(load(folder, target_size=None).test.in_order(2))
    assert images.shape == (2, 3, 224, 224)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_becomes_of_an_example_follows_from_the_seed_and_its_index_alone(folder, workers):
    reference, labels = together(load(folder).train.batches([torch.arange(9)], 5))
    split = load(folder, num_workers=workers).train
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled, shuffled_labels = together(split.batches(order.split(2), 5))
    assert torch.equal(shuffled, reference[order])
    assert torch.equal(shuffled_labels, labels[order])
    rank, _ = together(split.batches([part[1::2] for part in order.split(4)], 5))
    assert torch.equal(rank, reference[order[[1, 3, 5, 7]]])
    other, _ = together(split.batches([torch.arange(9)], 6))
    assert (other != reference).flatten(1).any(1).all()


def test_training_images_are_parts_of_theirs_at_different_places(folder):
    split = load(folder).train
    plain, _ = together(split.in_order(9))
    views = [together(split.batches([torch.arange(9)], seed))[0] for seed in range(6)]
    assert len({view.sum().item() for view in views}) == 6
    assert all((view != plain).flatten(1).any(1).all() for view in views)
    # The same picture, so mostly the same colours.
    assert (torch.stack(views).mean((0, 3, 4)) - plain.mean((2, 3))).abs().mean() < 0.5


def test_every_example_of_a_batch_has_a_fate_of_its_own(tmp_path):
    for index in range(12):
        picture(tmp_path / "train" / "ant" / f"{index}.png")
    picture(tmp_path / "test" / "ant" / "0.png")
    images, _ = next(load(tmp_path, validation="test", validation_size=None).train.batches([torch.arange(12)], 1))
    assert len(images.flatten(1).unique(dim=0)) == 12


def test_without_augmentation_a_seed_is_ignored_and_evaluation_splits_have_none(folder):
    loaded, augmented = load(folder, augment=False), load(folder)
    assert loaded.record["augment"] is None
    for split in (loaded.train, augmented.validation, augmented.test):
        part = [torch.arange(3)]
        assert torch.equal(next(split.batches(part, 5))[0], next(split.batches(part))[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_generator_is_drawn_from(folder, workers):
    with untouched_randomness():
        split = load(folder, num_workers=workers).train
        together(split.batches(torch.arange(9).split(4), 5))
        together(split.in_order(4))


@pytest.fixture
def damaged(folder):
    """The folder with one truncated and one empty file among the training images, held out or not."""
    cut(folder / "train" / "ant" / "1.JPEG")
    (folder / "train" / "bee" / "4.JPEG").write_bytes(b"")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(damaged, workers):
    split = load(damaged, validation="test", validation_size=None, num_workers=workers).train
    with pytest.raises(data.DataError) as caught:
        together(split.batches(torch.arange(12).split(4), 1))
    message = str(caught.value)
    assert message.startswith(str(damaged / "train" / "ant" / "1.JPEG"))
    assert message.endswith("Repair or remove it, or set data.skip_corrupt: true.")
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_left_out_and_told(damaged, workers):
    keys = {"validation": "test", "validation_size": None, "num_workers": workers, "skip_corrupt": True}
    split = load(damaged, **keys).train
    assert split.skipped == []
    for _ in range(2):
        batches = list(split.to(torch.device("cpu")).batches([*torch.arange(12).split(4), torch.tensor([1, 10])], 1))
        assert [len(labels) for _, labels in batches] == [3, 4, 3, 0]
    assert batches[-1][0].shape == (0, 3, SIZE, SIZE)  # a batch for every part, so that processes keep step
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 5
    assert split.skipped == [str(damaged / "train" / name) for name in ("ant/1.JPEG", "bee/4.JPEG")]
    assert load(damaged, **keys).train.skipped == []
    clean, _ = together(split.batches([torch.tensor([0, 2])], 1))
    assert torch.equal(batches[0][0][:2], clean)


def test_sixteen_bits_are_not_taken_for_eight(folder):
    deep = np.full((40, 40), 1000, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "test" / "ant" / "deep.png")
    with pytest.raises(data.DataError, match=r"deep\.png cannot be read.*more than 8 bits"):
        together(load(folder).test.in_order(4))


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "bmp", "tiff", "gif", "ppm"])
def test_the_format_is_read_from_the_file_and_not_from_its_name(folder, form):
    path = folder / "test" / "ant" / "0.JPEG"
    picture(path)
    with Image.open(path) as image:
        image.save(path, format=form)
    assert together(load(folder).test.in_order(4))[0].shape[0] == 8


def test_no_other_program_is_started_for_an_image(folder, monkeypatch):
    path = folder / "test" / "ant" / "0.JPEG"
    with Image.open(path) as image:
        image.save(path, format="eps")
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **keys: pytest.fail("Ghostscript was called"))
    with pytest.raises(data.DataError, match=r"0\.JPEG cannot be read as an image: it is none in JPEG, PNG"):
        together(load(folder).test.in_order(4))


@pytest.mark.parametrize(
    ("limit", "told"), [("MAX_IMAGE_PIXELS", "64x48 pixels, more than Pillow's limit"), ("memory", "would take")]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_is_too_large_is_not_decoded(folder, monkeypatch, limit, told):
    picture(folder / "test" / "ant" / "0.JPEG")
    if limit == "memory":
        monkeypatch.setattr("biotorch.data.images._LARGE", 64 * 48 - 1)
        monkeypatch.setattr("biotorch._memory.available", lambda: 8 * 64 * 48 - 1)
    else:
        monkeypatch.setattr(Image, limit, 64 * 48 - 1)
    with pytest.raises(data.DataError, match=rf"0\.JPEG cannot be read as an image: .*{told}"):
        together(load(folder).test.in_order(1))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers cannot tell who signals")
def test_workers_outlive_signals_from_elsewhere_but_end_when_the_parent_says_so(folder):
    batches = load(folder, num_workers=2).train.batches(torch.arange(9).split(1), 5)
    for _ in range(2):  # one of each worker, which then looks after its signals
        next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(batches)) == 7
    batches = load(folder, num_workers=2).train.batches(torch.arange(9).split(1), 5)
    for _ in range(2):
        next(batches)
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join(timeout=5)
        assert not worker.is_alive()
    batches.close()


def test_val_is_the_test_set_where_there_is_no_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(load(folder).test) == 8


def test_of_bare_class_folders_always_the_same_fifth_is_the_test_set(tmp_path):
    for name in ("boat", "car", "train"):
        for index in range(10):
            picture(tmp_path / name / f"{index}.png", seed=index)
    first = load(tmp_path)
    second = data.load(data.DataConfig(dataset=f"folder:{tmp_path}"), seed=1)
    assert [len(first.train), len(first.validation), len(first.test)] == [21, 3, 6]
    assert [len(second.train), len(second.validation)] == [22, 2]
    tests = [[path_of(loaded.test, index) for index in range(6)] for loaded in (first, second)]
    assert tests[0] == tests[1]
    assert not set(tests[0]) & {path_of(first.train, index) for index in range(21)}
    assert first.num_outputs == 3


def test_hidden_files_and_folders_are_no_images_and_no_classes(folder):
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "ant" / "._0.JPEG").write_bytes(b"metadata")
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    assert len(load(folder).train) == 9


def test_images_are_listed_in_the_order_of_torchvision(folder):
    picture(folder / "train" / "ant" / "inner" / "Z.png")
    picture(folder / "train" / "ant" / "a.PNG")
    (folder / "train" / "bee" / "folder.png").mkdir()
    found = [path_of(load(folder, validation="test", validation_size=None).train, index) for index in range(14)]
    assert found == [path for path, _ in ImageFolder(folder / "train").samples]


def test_folders_that_cannot_be_a_set_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for number in range(7):
        (empty / f"{number}.png").touch()
    with pytest.raises(data.DataError, match=r"has no class folders") as caught:
        load(empty)
    for line in (f"  {empty.name}/train/dog/2.jpg", f"{empty} holds 0.png, 1.png, 2.png, 3.png, 4.png and 2 more."):
        assert line in str(caught.value).split("\n")
    with pytest.raises(
        FileNotFoundError, match=r"'/no/where' of data.dataset was not found; these paths do not exist: /no/where"
    ):
        load("/no/where")
    (folder / "train" / "cow").mkdir()
    with pytest.raises(data.DataError, match=r"classes of .*differ: \['cow'\] only in .*train"):
        load(folder)
    (folder / "test" / "cow").mkdir()
    with pytest.raises(data.DataError, match=r"train/cow holds no images"):
        load(folder)
    (folder / "test").rename(folder / "elsewhere")
    with pytest.raises(data.DataError, match=r"has train/, but neither test/ nor val/") as caught:
        load(folder)
    assert str(caught.value).endswith(f"{folder} holds elsewhere/, train/.")


@pytest.mark.parametrize("inside", [False, True])
def test_imagenet_is_a_folder_with_train_and_val(folder, tmp_path_factory, inside):
    (folder / "test").rename(folder / "val")
    place = folder
    if inside:
        place = tmp_path_factory.mktemp("data")
        folder.rename(place / "imagenet")
    config = data.DataConfig(dataset="imagenet", dataset_path=place, validation_size=2, target_size=SIZE)
    loaded = data.load(config, seed=0)
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [10, 2, 8]
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_missing_imagenet_is_told_where_to_go(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenet/train/<class>/.*data\.dataset_path"):
        data.load(data.DataConfig(dataset="imagenet", dataset_path=tmp_path), seed=0)
