"""Claims about errors of tracking stores: they name the option, the variable or the setting that named the store."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from tests.helpers.runs import write_configuration
from tests.helpers.tracked import write_run

AWAY = "http://127.0.0.1:9"
OPTIONS = {
    "ui": ["ui"],
    "predict": ["predict", "models:/net", "a.jpg"],
    "evaluate": ["evaluate", "models:/net", "data"],
    "export": ["export", "models:/net"],
    "register": ["register", "runs:/0123", "net"],
}
"""Commands that take --uri, and without it MLFLOW_TRACKING_URI."""
SETTINGS = {
    "train": ["train", "train.yaml", "start.checkpoint=models:/net"],
    "tune": ["tune", "tune.yaml", "train.start.checkpoint=models:/net"],
}
"""Commands that have settings, and without them MLFLOW_TRACKING_URI."""


@pytest.fixture(autouse=True)
def folder(textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "a.jpg").touch()
    (tmp_path / "data").symlink_to(textures)
    settings = yaml.safe_load(write_configuration(tmp_path, textures).read_text())
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    search = {"name": "s", "space": {"widths": [[4], [8]]}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump({"train": settings, "search": search}))
    return tmp_path


def complaint(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with an error of the user."""
    monkeypatch.setattr(sys, "argv", ["phasecollapse", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    error = capfd.readouterr().err
    assert end.value.code == 2, error
    return error.removeprefix("error: ").removeprefix("start.checkpoint: ").strip()


@pytest.mark.parametrize("command", OPTIONS)
def test_an_address_on_the_command_line_is_named_by_its_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:8")
    error = complaint([*OPTIONS[command], "--uri", AWAY], monkeypatch, capfd)
    assert error == f"--uri: {AWAY} is unreachable (connection refused): check it, or leave --uri out"


@pytest.mark.parametrize("command", [*OPTIONS, *SETTINGS])
def test_an_address_in_the_environment_is_named_by_its_variable(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    error = complaint({**OPTIONS, **SETTINGS}[command], monkeypatch, capfd)
    assert error == (
        f"MLFLOW_TRACKING_URI: {AWAY} is unreachable (connection refused): check it, or unset MLFLOW_TRACKING_URI"
    )


@pytest.mark.parametrize("command", SETTINGS)
def test_an_address_in_settings_is_named_by_its_setting(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:8")
    setting = f"{'train.' if command == 'tune' else ''}tracking.uri={AWAY}"
    error = complaint([*SETTINGS[command], setting], monkeypatch, capfd)
    assert error == f"tracking.uri: {AWAY} is unreachable (connection refused): check it, or unset tracking.uri"


@pytest.mark.parametrize("arguments", [["ui"], ["predict", "models:/net", "a.jpg"]])
def test_a_damaged_default_store_can_be_left_by_an_option(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    Path("runs/mlflow.db").write_text("no database")
    error = complaint(arguments, monkeypatch, capfd)
    assert error.endswith("(the runs in their folders stay), or name another store with --uri")


def test_the_store_of_a_run_is_named_by_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_run(folder / "runs" / "a", AWAY, status="FINISHED")
    error = complaint(["sync", "runs"], monkeypatch, capfd)
    assert error == f"runs/a: {AWAY} is unreachable (connection refused): check it"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            401,
            "refuses the user or the password (HTTP status 401): correct MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD",
        ),
        (403, "denies the user a right (HTTP status 403): have it granted"),
        (404, "is no tracking server of MLflow (HTTP status 404): correct the address"),
        (418, "failed (HTTP status 418): check it, or leave --uri out"),
    ],
)
def test_what_a_server_answers_is_not_called_unreachable(
    status: int, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(status)

        do_GET = do_POST

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for command in ("ui", "predict"):
            assert complaint([*OPTIONS[command], "--uri", address], monkeypatch, capfd) == f"--uri: {address} {message}"
        server.shutdown()
