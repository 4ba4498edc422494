"""Claims about passwords: wherever a user gives one, no file, no output and no list of processes has it afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.cli import main
from pipeline.config import settings_io
from tests.helpers.runs import Command, write_configuration

SECRET = "correct-horse-0815"
ADDRESSES = [
    f"http://user:{SECRET}@127.0.0.1:9",
    f"http://127.0.0.1:9?api_key={SECRET}",
    f"postgresql://user:a@{SECRET}@127.0.0.1:9/mlflow",
    f"postgresql://user:a?{SECRET}@127.0.0.1:9/mlflow",
    f"postgresql://user:a/{SECRET}@127.0.0.1:9/mlflow",
    f"s3://AKIA:{SECRET}@bucket/runs",
    f"s3://bucket/runs?access_key=AKIA&secret_key={SECRET}",
    f"https://bucket.example/train.tar?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}",
]
STORES = [*ADDRESSES, f"postgresql://user:a {SECRET}@127.0.0.1:9/mlflow", f"user:{SECRET}@127.0.0.1:9"]
"""The last two are no addresses, but a tracking store might take them."""
SETTINGS = {
    f"{command} {setting}": (command, f"{prefix}{setting}")
    for command, prefix in (("train", ""), ("tune", "train."))
    for setting in (
        "tracking.uri",
        "checkpoint.upload",
        "start.checkpoint",
        "cluster.address",
        "data.path",
        "data.stage",
    )
}
OPTIONS = {
    "ui": ["ui"],
    "predict": ["predict", "models:/net", "a.jpg"],
    "evaluate": ["evaluate", "models:/net", "data"],
    "export": ["export", "models:/net"],
    "register a run": ["register", "run", "net"],
    "register an id": ["register", "runs:/0123", "net"],
}
"""Commands that take --uri."""
VARIABLE = {
    **{name: OPTIONS[name] for name in ("ui", "predict", "evaluate", "export", "register an id")},
    "train": ["train", "train.yaml"],
    "tune": ["tune", "tune.yaml"],
}
"""Commands that look at MLFLOW_TRACKING_URI."""
ANYWHERE = {
    "a command": ["ADDRESS"],
    "an argument too many": ["runs", "list", "ADDRESS"],
    "a name": ["runs", "compare", "ADDRESS"],
    "a folder": ["runs", "--storage", "ADDRESS"],
    "a choice": ["evaluate", "run", "data", "--split", "ADDRESS"],
    "a network": ["evaluate", "ADDRESS", "data"],
    "a run": ["register", "ADDRESS", "net"],
    "a model": ["predict", "models:/ADDRESS", "a.jpg", "--storage", "."],
    "a configuration": ["train", "ADDRESS"],
    "an assignment": ["train", "train.yaml", "ADDRESS"],
    "a number": ["train", "train.yaml", "training.epochs=ADDRESS"],
    "a list": ["train", "train.yaml", "training.callbacks=['ADDRESS']"],
    "an unknown setting": ["train", "train.yaml", "tracking.url='ADDRESS'"],
    "a candidate": ["tune", "tune.yaml", "search.candidates=[{start.checkpoint: 'ADDRESS'}]"],
    "a dimension": ["tune", "tune.yaml", "search.space={start.checkpoint: ['ADDRESS']}"],
    "runs": ["sync", "ADDRESS"],
    "a report": ["report", "ADDRESS"],
    "an output": ["prepare", "data", "ADDRESS"],
    "an output too many": ["prepare", "data", "ADDRESS", "more"],
}
"""Commands that are given an address where it does not belong."""


@pytest.fixture
def folder(textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "data").symlink_to(textures)
    settings = yaml.safe_load(write_configuration(tmp_path, textures).read_text())
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    search = {"name": "s", "space": {"widths": [[4], [8]]}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump({"train": settings, "search": search}))
    return tmp_path


def found_in(folder: Path) -> list[Path]:
    """The files below a folder with the password in them, or in their names."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    return [path for path in paths if SECRET in str(path) or (path.is_file() and SECRET.encode() in path.read_bytes())]


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says that is refused, with no password in it, or in a file of the current folder."""
    monkeypatch.setattr(sys, "argv", ["phasecollapse", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    output, error = capfd.readouterr()
    assert end.value.code == 2, error
    assert SECRET not in output + error
    assert found_in(Path.cwd()) == []
    return error


@pytest.mark.parametrize("place", SETTINGS)
def test_a_setting_with_a_password_is_refused(
    place: str,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command, setting = SETTINGS[place]
    name = setting.rpartition(".")[2]
    file = folder / f"{command}.yaml"
    mine = tmp_path_factory.mktemp("mine") / file.name  # where the password is, as the user has written it
    for address in STORES if name == "uri" else ADDRESSES:
        mine.write_text(
            yaml.safe_dump(settings_io.override(yaml.safe_load(file.read_text()), [f"{setting}={address}"]))
        )
        for arguments in ([str(file), f"{setting}={address}"], [str(mine)]):
            error = refused([command, *arguments], monkeypatch, capfd)
            assert f"{name} must not hold a" in error or "must be a path on this machine" in error, error


@pytest.mark.parametrize("place", OPTIONS)
def test_an_option_with_a_password_is_refused(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for address in STORES:
        error = refused([*OPTIONS[place], "--uri", address], monkeypatch, capfd)
        assert error.startswith("error: --uri must not hold a user name, password or key"), error


@pytest.mark.parametrize("place", VARIABLE)
def test_a_variable_with_a_password_is_refused(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for address in STORES:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        error = refused(VARIABLE[place], monkeypatch, capfd)
        assert error.startswith("error: MLFLOW_TRACKING_URI must not hold a user name, password or key"), error


@pytest.mark.parametrize("place", ANYWHERE)
def test_an_address_in_a_wrong_place_is_shown_without_its_password(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for address in ADDRESSES:
        refused([argument.replace("ADDRESS", address) for argument in ANYWHERE[place]], monkeypatch, capfd)


@contextmanager
def command_lines(command: Command) -> Iterator[set[str]]:
    """The command lines of all processes that a command starts during the body."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            with suppress(psutil.Error):
                for process in command.family():
                    with suppress(psutil.Error):
                        seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_passwords_of_the_environment_stay_there(textures: Path, tmp_path: Path) -> None:
    """A run on Ray, with a tracking server and copies of checkpoints that are away, behind a proxy with a password."""
    with tempfile.TemporaryDirectory(dir="/tmp") as ray:  # a short name, as Ray's sockets lie in it
        proxy = f"http://user:{SECRET}@127.0.0.1:9"
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
            **dict.fromkeys(("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"), SECRET),
            "MLFLOW_TRACKING_USERNAME": "user",
            "AWS_ACCESS_KEY_ID": "AKIA",
            "MLFLOW_TRACKING_URI": proxy,  # settings win
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "RAY_TMPDIR": ray,
        }
        changes = ["cluster.workers=1", "training.epochs=1", "tracking.uri=http://mlflow.example:5000", "run.name=run"]
        file = write_configuration(tmp_path, textures, *changes)
        command = Command(file, environment=environment)
        with command_lines(command) as lines:
            status, output, error = command.end()
        assert status == 0, error
        assert "mlflow.example:5000 is unreachable" in error
        assert "raylet" in " ".join(lines)
        assert SECRET not in output + error + " ".join(lines)
        assert list(Path(ray).rglob("raylet.out"))
        assert found_in(tmp_path) + found_in(Path(ray)) == []
