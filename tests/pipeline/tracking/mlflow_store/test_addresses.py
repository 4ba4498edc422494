"""Claims about addresses of tracking stores: which one is meant, and what is refused, with the way to do it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from pipeline.config.schema import DataSettings, RunSettings, Settings, TrackingSettings
from pipeline.tracking.mlflow_store import addresses
from pipeline.tracking.mlflow_store.store import default_store, named_store, store_of

SERVER, OTHER = "http://server:5000", "http://other:5000"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    return monkeypatch


def settings(tracking: TrackingSettings, storage: Path = Path("runs")) -> Settings:
    return Settings(data=DataSettings(path="x"), run=RunSettings(storage=str(storage)), tracking=tracking)


def test_the_environment_gives_the_defaults_and_settings_win(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = addresses.choose(settings(TrackingSettings())).tracking
    assert (chosen.uri, chosen.experiment) == (SERVER, "ours")
    chosen = addresses.choose(settings(TrackingSettings(uri=OTHER, experiment="mine"))).tracking
    assert (chosen.uri, chosen.experiment) == (OTHER, "mine")
    default = addresses.choose(settings(TrackingSettings(experiment="phasecollapse")))
    assert default.tracking.experiment == "phasecollapse"
    assert store_of(settings(TrackingSettings(uri=None), tmp_path)) == default_store(tmp_path)
    environment.delenv("MLFLOW_TRACKING_URI")
    assert store_of(settings(TrackingSettings(), tmp_path)) == default_store(tmp_path)


def test_options_of_commands_win_over_the_environment(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert named_store(None, None).uri == SERVER
    assert named_store(tmp_path, None) == default_store(tmp_path)
    assert named_store(tmp_path, OTHER).uri == OTHER
    assert addresses.ui_command(settings(TrackingSettings())) == f"phasecollapse ui --uri {SERVER}"
    environment.delenv("MLFLOW_TRACKING_URI")
    assert addresses.ui_command(settings(TrackingSettings())) == "phasecollapse ui --storage runs"


def test_a_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert addresses.check("sqlite:///a/rel.db", "--uri") == f"sqlite:///{tmp_path}/a/rel.db"
    assert addresses.check("SQLITE:////data/up.db", "--uri") == "sqlite:////data/up.db"
    assert addresses.check(" http://server:5000 ", "--uri") == SERVER


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "./mlruns",
            r"--uri: \./mlruns is a folder, and MLflow keeps runs in databases: write sqlite:////.*/mlruns/ml",
        ),
        ("file:///data/m", r"is a folder, .*: write sqlite:////data/m/mlflow\.db, or .*http://HOST:5000"),
        ("sqlite://", r"names no file: write sqlite:////FOLDER/mlflow\.db, with four slashes"),
        ("sqlite:///:memory:", r"names no file"),
        ("127.0.0.1:5000", r"lacks its scheme: write http://127\.0\.0\.1:5000"),
    ],
)
def test_what_is_no_address_of_a_store_is_explained(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        addresses.check(uri, "--uri")


def test_a_folder_store_with_runs_is_explained_with_its_migration(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "meta.yaml").touch()
    with pytest.raises(
        UserError, match=rf"mlflow migrate-filestore --source {tmp_path} --target sqlite:///{tmp_path}/"
    ):
        addresses.check(str(tmp_path), "--uri")


@pytest.mark.parametrize(
    "uri", ["http://u:secret@server:5000", "postgresql://u:secret@h/db?sslmode=x", "http://h?key=secret"]
)
def test_a_password_is_refused_with_the_way_to_give_it(environment: pytest.MonkeyPatch, uri: str) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", uri)
    for refuse in (
        lambda: addresses.choose(settings(TrackingSettings())),
        lambda: named_store(None, None),
        lambda: named_store(None, uri),
    ):
        with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as error:
            refuse()
        assert "secret" not in str(error.value)
