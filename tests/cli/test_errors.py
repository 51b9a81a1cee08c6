"""How commands end when something outside of them fails: pipes, disks, files, packages, and defects."""

from __future__ import annotations

import errno
import os
import pickle
import platform
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import runs
import torch
from commands import SHORT, into, invoke, mistake
from matplotlib.figure import Figure
from places import QUICKSTART
from torchvision.datasets import MNIST

from biotorch import _files, data, models
from biotorch._names import require
from biotorch.cli import inspect
from biotorch.cli.__main__ import main
from biotorch.errors import Failure, kind_of
from biotorch.experiment import ConfigError, checkpoints, documents
from biotorch.experiment.network import build_model
from biotorch.report import style

FULL = Path("/dev/full")
FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

needs_full = pytest.mark.skipif(not FULL.exists(), reason="writes to /dev/full")


def slow(*values):
    """A case that goes the way of another one: a command takes seconds to start."""
    return pytest.param(*values, marks=pytest.mark.slow)


def command(argument: str, stdout: int, unbuffered: bool = False) -> tuple[int, str]:
    """Exit code and stderr of a command in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    ended = subprocess.run(
        [sys.executable, "-m", "biotorch.cli", argument],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    return ended.returncode, ended.stderr


# Standard output -------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [slow("models"), slow("rules"), "schema", "--help"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(argument):
    reading, written = os.pipe()
    os.close(reading)
    try:
        assert command(argument, written) == (141, "")
    finally:
        os.close(written)


@needs_full
@pytest.mark.parametrize(
    ("argument", "unbuffered"),
    [
        ("rules", False),
        ("--help", True),
        *(slow(argument, buffering) for argument in ("models", "schema") for buffering in (False, True)),
        slow("rules", True),
        slow("--help", False),
    ],
)
def test_output_to_a_full_disk_is_one_line(argument, unbuffered):
    with FULL.open("w") as output:
        ended = command(argument, output.fileno(), unbuffered)
    assert ended == (4, "error: standard output: the disk is full\n")


# Files -----------------------------------------------------------------------------------------------


def half_save(content, file):
    """What `torch.save` does on a full disk: the system's error, hidden behind one of its own."""
    try:
        raise OSError(*FULL_DISK.args)
    except OSError:
        raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904 - as torch does


def test_a_full_disk_under_a_run_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.torch, "save", half_save)
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT))
    assert result.exit_code == 4, result.output
    assert result.stderr == f"error: {tmp_path / 'short' / 'latest_model.pth'}: the disk is full\n"


def test_a_full_disk_under_the_points_of_a_sweep_is_neither_mistake_nor_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.torch, "save", half_save)
    arguments = [*into(tmp_path, *SHORT), "sweep={model.mode.type: [fa, dfa]}", "--jobs", "1"]
    result = invoke("run", QUICKSTART, *arguments)
    assert result.exit_code == 4, result.output
    assert f"rule=dfa: {tmp_path / 'short' / 'rule=dfa' / 'latest_model.pth'}: the disk is full" in result.stderr


@needs_full
def test_every_writer_names_the_file_that_does_not_fit(tmp_path):
    def save():
        path = tmp_path / "model.pth"
        (tmp_path / f".model.pth.{platform.node()}.{os.getpid()}.unfinished").symlink_to(FULL)
        checkpoints.save(path, {"weight": torch.zeros(100_000)})

    def write():
        (tmp_path / f".table.md.{platform.node()}.{os.getpid()}.unfinished").symlink_to(FULL)
        _files.write_text(tmp_path / "table.md", "|")

    def draw():
        (tmp_path / f".figure.png.{platform.node()}.{os.getpid()}.unfinished").symlink_to(FULL)
        style.write(Figure(), tmp_path / "figure.png")

    for writer, name in ((save, "model.pth"), (write, "table.md"), (draw, "figure.png")):
        with pytest.raises(OSError, match="No space left") as caught:
            writer()
        failure = Failure.of(pickle.loads(pickle.dumps(caught.value)))  # as another process would send it
        assert (failure.kind, failure.message) == ("disk", f"{tmp_path / name}: the disk is full")


def test_a_download_onto_a_full_disk_is_no_missing_data_set(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise OSError(*FULL_DISK.args)

    monkeypatch.setattr(MNIST, "download", refuse)
    with pytest.raises(OSError, match="No space left") as caught:
        data.load(data.DataConfig(dataset="mnist", dataset_path=tmp_path), seed=0)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_weights_that_cannot_be_downloaded_are_told_and_a_full_disk_is_not_the_configurations(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise reason

    monkeypatch.setattr(models, "build", refuse)
    config = runs.quick(tmp_path).config
    reason = urllib.error.URLError("no network")
    with pytest.raises(ConfigError, match=r"model\.architecture 'le_net_mnist'.*downloaded.*no network"):
        build_model(config, 10, (1, 32, 32))
    reason = OSError(*FULL_DISK.args)
    with pytest.raises(OSError, match="No space left"):
        build_model(config, 10, (1, 32, 32))


def test_a_file_of_the_users_that_the_system_refuses_is_a_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    assert f"error: {tmp_path / 'file' / 'short'}: Not a directory\n" == mistake(
        invoke("run", QUICKSTART, *into(tmp_path / "file", *SHORT))
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("no folder runs"), "mistake"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/somewhere/x"), "mistake"),
        (PermissionError(errno.EACCES, "Permission denied", "/somewhere/x"), "mistake"),
        (OSError(errno.EROFS, "Read-only file system", "/somewhere/x"), "mistake"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/somewhere/x"), "disk"),
        (FULL_DISK, "disk"),
        (FileNotFoundError(errno.ENOENT, "No such file", inspect.__file__), "defect"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "defect"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "defect"),
        (OSError(errno.EBADF, "Bad file descriptor"), "defect"),
        (ModuleNotFoundError("No module named 'biotorch.layer'", name="biotorch.layer"), "defect"),
    ],
)
def test_errors_of_the_system_are_sorted_by_what_they_are_about(error, kind):
    assert Failure.of(error).kind == kind_of(error) == kind


# Packages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_broken_import_of_our_own_is_a_defect(monkeypatch, kind):
    def schema():
        raise kind("No module named 'biotorch.layer'")

    monkeypatch.setattr(documents, "json_schema", schema)
    result = invoke("schema")
    assert result.exit_code == 1
    assert isinstance(result.exception, kind)


def test_a_missing_extra_is_a_mistake_with_the_cure(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_text("")
    (tmp_path / "test.parquet").write_text("")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = invoke("run", QUICKSTART, *into(tmp_path, *SHORT), f"data.dataset=parquet:{tmp_path}")
    assert mistake(result) == "error: this data set needs pyarrow: pip install 'biotorch-feedback[data]'\n"


def test_a_package_that_is_there_and_broken_tells_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nothing_of_that_name'") as caught:
        require("broken_extra", "extra", "somebody")
    assert kind_of(caught.value) == "defect"


def test_a_module_of_the_users_that_does_not_import_is_a_mistake(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_that_name")
    told = mistake(invoke("--import", tmp_path / "mine.py", "models"))
    assert "mine.py:1: No module named 'nothing_of_that_name'" in told
    assert "imports: nowhere" in mistake(invoke("--import", "nowhere", "models"))


def test_ctrl_c_while_modules_are_imported_is_one_line(monkeypatch, capsys):
    class Interrupting:
        @staticmethod
        def find_spec(name, path, target=None):
            if name == "biotorch.cli.app":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "biotorch.cli.app")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == "stopped by SIGINT"
