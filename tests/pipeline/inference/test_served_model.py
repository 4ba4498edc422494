"""Claims about runs' networks as models of MLflow: logged, loaded, served, registered, and named where folders are."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas
import pytest
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from PIL import Image

from data_prep.common.errors import UserError
from pipeline.cli import models as commands
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import (
    ClusterSettings,
    DataSettings,
    RunSettings,
    Settings,
    StartSettings,
    TrainingSettings,
)
from pipeline.inference import prediction
from pipeline.launch import launcher
from pipeline.launch.launcher import Outcome
from pipeline.runs import checkpoint_store, paths, trained_model
from pipeline.tracking.mlflow_store import models, registry
from pipeline.tracking.mlflow_store.store import connect, default_store

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # of mlflow.pyfunc, when it is imported

WITHOUT_RAY = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "ffcv"):
            raise ModuleNotFoundError(f"No module named '{name}'")

sys.meta_path.insert(0, Blocker())
"""
"""A module sitecustomize, which Python imports when it starts."""


def settings_of(storage: Path, data: Path, name: str = "run", epochs: int = 2, start: str | None = None) -> Settings:
    return Settings(
        data=DataSettings(path=str(data), image_size=16, flip=False),
        run=RunSettings(name=name, storage=str(storage)),
        model=ScatteringSettings(widths=(4, 4)),
        training=TrainingSettings(epochs=epochs, batch_size=80),
        cluster=ClusterSettings(workers=0),
        start=StartSettings(checkpoint=start),
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(storage: Path, textures: Path) -> Outcome:
    return launcher.train(settings_of(storage, textures), progress=False)


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return connect(default_store(storage))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("images") / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return file


def logged(client: MlflowClient, trained: Outcome, name: str) -> LoggedModel:
    (model,) = models.find_models(client, client.get_run(trained.run_id), name)
    return client.get_logged_model(model.model_id)


def test_a_finished_run_has_its_best_and_its_last_checkpoint_as_models(client: MlflowClient, trained: Outcome) -> None:
    checkpoints = trained_model.best_and_last(trained.folder)
    assert checkpoints["last"].name == "epoch-00002"
    outputs = client.get_run(trained.run_id).outputs.model_outputs
    for name, checkpoint in checkpoints.items():
        model = logged(client, trained, name)
        assert model.status == "READY" and model.params["model.widths"] == "[4, 4]"
        record = trained_model.describe(checkpoint)
        epoch = int(checkpoint.name[-5:])
        assert [(one.step) for one in outputs if one.model_id == model.model_id] == [3 * epoch]
        top1 = next(one for one in model.metrics if one.key == "validation/top1")
        assert top1.value == checkpoint_store.describe(checkpoint).score and top1.step == 3 * epoch
        assert (
            f"{checkpoint.name} of run: validation/top1 {100 * top1.value:.2f} %" in model.tags[models.DESCRIPTION_TAG]
        )
        folder = Path(model.artifact_location.removeprefix("file://"))
        files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        inside = {f"checkpoints/{checkpoint.name}/{file}" for file in (*trained_model.FILES, paths.DESCRIPTION)}
        assert files - inside == {
            "MLmodel",
            "requirements.txt",
            "conda.yaml",
            "python_env.yaml",
            "input_example.json",
            "serving_input_example.json",
        }
        assert inside < files
        packages = {one.split("==")[0]: one.split("==")[1] for one in (folder / "requirements.txt").read_text().split()}
        assert packages.keys() == {"mlflow", "phasecollapse", "torch"} and packages["mlflow"] == version("mlflow")
        hashes = yaml.safe_load((folder / "MLmodel").read_text())["metadata"]["sha256"]
        assert hashes[paths.MODEL] == checkpoint_store.describe(checkpoint).files[paths.MODEL]
        assert trained_model.load(folder).settings == record.settings, "a model is laid out like a run"


def test_what_is_logged_is_found_again_and_what_is_missing_is_logged(client: MlflowClient, trained: Outcome) -> None:
    before = {name: logged(client, trained, name).model_id for name in ("best", "last")}
    assert {
        name: one.model_id for name, one in models.log_models(client, trained.run_id, trained.folder).items()
    } == before
    client.delete_logged_model(before["last"])
    after = models.log_models(client, trained.run_id, trained.folder)
    assert after["best"].model_id == before["best"] and after["last"].model_id != before["last"]
    client.finalize_logged_model(after["last"].model_id, "FAILED")  # as one that was interrupted
    shutil.rmtree(after["last"].artifact_location.removeprefix("file://"))
    assert models.log_models(client, trained.run_id, trained.folder)["last"].model_id == after["last"].model_id
    assert trained_model.load(after["last"].artifact_location.removeprefix("file://"))


def test_mlflow_loads_a_model_that_answers_like_predict(client: MlflowClient, trained: Outcome, image: Path) -> None:
    location = logged(client, trained, "best").artifact_location
    model = mlflow.pyfunc.load_model(location, suppress_warnings=True)
    (expected,) = prediction.predict(trained_model.best_and_last(trained.folder)["best"], [image])
    table = model.predict(pandas.DataFrame({"image": [image.read_bytes()] * 2}))
    assert list(table.columns) == [one.name for one in model.metadata.signature.outputs]
    for row in table.to_dict("records"):
        answers = [(one["class"], one["id"], pytest.approx(one["probability"], abs=1e-6)) for one in row["top5"]]
        assert [(one.name, one.id, one.probability) for one in expected.answers] == answers
        assert (row["class"], row["id"], row["probability"]) == tuple(row["top5"][0].values())
    assert len(model.predict(model.input_example)) == 1
    with pytest.raises(
        MlflowException, match=r"row 1 of 'image' cannot be read as an image: it is no image"
    ) as refused:
        model.predict(pandas.DataFrame({"image": [image.read_bytes(), b"x"]}))
    assert refused.value.get_http_status_code() == 400


def test_a_damaged_model_is_not_loaded(client: MlflowClient, trained: Outcome, tmp_path: Path) -> None:
    model = Path(
        shutil.copytree(logged(client, trained, "last").artifact_location.removeprefix("file://"), tmp_path / "m")
    )
    weights = next(model.rglob(paths.MODEL))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(model.safetensors is not what was written\)"):
        mlflow.pyfunc.load_model(str(model), suppress_warnings=True)


def run_command(command: str, *arguments: str) -> str:
    done = CliRunner().invoke(getattr(commands, command), list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_model_is_registered_once_and_found_by_each_of_its_names(
    client: MlflowClient, trained: Outcome, storage: Path, image: Path
) -> None:
    run, best, last = str(trained.folder), "best", "last"
    assert run_command("register", run, "net", "--alias", "champion") == (
        f"{trained_model.best_and_last(trained.folder)['best'].name} of {run} is now version 1 of net\n"
        "alias champion: models:/net@champion\n"
    )
    assert " is already version 1 of net" in run_command("register", run, "net")
    run_command("register", f"runs:/{trained.run_id}", "net", "--which", "last", "--storage", str(storage))
    for which, name in {
        "models:/net@champion": best,
        "models:/net/1": best,
        "models:/net": last,
        "models:/net/latest": last,
        f"models:/{logged(client, trained, best).model_id}": best,
        f"runs:/{trained.run_id}": last,
        f"runs:/{trained.run_id}/best": best,
    }.items():
        with registry.checkpoint_of(which, storage) as checkpoint:
            assert checkpoint.name == trained_model.best_and_last(trained.folder)[name].name
    shown = run_command("predict", "models:/net@champion", str(image), "--storage", str(storage))
    assert shown == run_command("predict", str(trained_model.best_and_last(trained.folder)["best"]), str(image))


def test_a_server_that_is_away_is_not_taken_for_one_without_the_model() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=f"{address} is unreachable"),
            registry.checkpoint_of("models:/net@champion", None, address),
        ):
            pass


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/other", r"models:/other is not in sqlite.* not found"),
        ("models:/net@rival", r"models:/net@rival is not in sqlite.* alias rival not found"),
        ("runs:/0123", r"runs:/0123 is not in sqlite"),
        ("runs:/RUN/evaluation", r"no model that phasecollapse has logged"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(trained: Outcome, storage: Path, source: str, message: str) -> None:
    registry.register(str(trained.folder), "net", which="best", alias=None, storage=storage)
    source = source.replace("RUN", trained.run_id)
    with pytest.raises(UserError, match=message), registry.checkpoint_of(source, storage):
        pass


def test_what_cannot_be_registered_is_refused(trained: Outcome, storage: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["net/1", "--alias", "a"], r"NAME: a model cannot be called 'net/1'"),
        (["net", "--alias", "latest"], "--alias: 'latest' is not allowed"),
        (["net", "--uri", f"sqlite:///{tmp_path}/none.db"], r"nothing is tracked in .*none.db"),
    ):
        with pytest.raises(UserError, match=message):
            run_command("register", str(trained.folder), *arguments)
    with pytest.raises(UserError, match="is not a run"):
        run_command("register", str(tmp_path), "net")
    assert not (tmp_path / "none.db").exists()


def test_a_run_starts_with_a_registered_model_and_keeps_it(trained: Outcome, textures: Path, storage: Path) -> None:
    registry.register(str(trained.folder), "start", which="best", alias="champion", storage=storage)
    settings = settings_of(storage, textures, "tuned", epochs=1, start="models:/start@champion")
    folder = launcher.train(settings, progress=False).folder
    best = trained_model.best_and_last(trained.folder)["best"]
    kept = checkpoint_store.describe(folder / paths.START).files
    assert kept[paths.MODEL] == checkpoint_store.describe(best).files[paths.MODEL]
    registry.register(str(folder), "start", which="last", alias="champion", storage=storage)  # the alias moves
    longer = settings_of(storage, textures, "tuned", epochs=2, start="models:/start@champion")
    assert launcher.train(longer, progress=False).epochs == 2
    other = settings_of(storage, textures, "tuned", epochs=2, start="models:/start/2")
    with pytest.raises(UserError, match=r"other settings .weights of start.checkpoint"):
        launcher.train(other, progress=False)
    missing = settings_of(storage, textures, "third", start="models:/none")
    with pytest.raises(UserError, match=r"start.checkpoint: models:/none is not in sqlite"):
        launcher.train(missing, progress=False)


@pytest.mark.slow
def test_a_registered_model_is_exported(trained: Outcome, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(str(trained.folder), "net", which="best", alias="exported", storage=storage)
    monkeypatch.chdir(storage)
    shown = run_command("export", "models:/net@exported", "--format", "torch-export", "--storage", str(storage))
    assert shown.startswith("models-net-exported.pt2: ") and (storage / "models-net-exported.pt2").is_file()


@contextmanager
def serving(model: str, storage: Path, scratch: Path) -> Iterator[str]:
    """``mlflow models serve`` where Ray and FFCV are missing and nothing may be unpickled: its address."""
    (scratch / "sitecustomize.py").write_text(WITHOUT_RAY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": default_store(storage).uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": os.pathsep.join([str(scratch), str(Path(models.__file__).parents[3])]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    with (scratch / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        print((scratch / "log").read_text())


@pytest.mark.slow
def test_mlflow_serves_a_model_without_ray_and_ffcv(
    trained: Outcome, storage: Path, image: Path, tmp_path: Path
) -> None:
    registry.register(str(trained.folder), "served", which="best", alias="champion", storage=storage)
    encoded = base64.b64encode(image.read_bytes()).decode()
    (expected,) = prediction.predict(trained_model.best_and_last(trained.folder)["best"], [image])
    with serving("models:/served@champion", storage, tmp_path) as address:

        def ask(content: object) -> dict:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(address, json.dumps(content).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        for content in (
            {"dataframe_split": {"columns": ["image"], "data": [[encoded]]}},
            {"dataframe_records": [{"image": encoded}]},
            {"inputs": {"image": [encoded]}},
            {"instances": [{"image": encoded}]},
        ):
            (row,) = ask(content)["predictions"]
            assert (row["class"], row["id"], len(row["top5"])) == (expected.answers[0].name, expected.answers[0].id, 5)
            assert row["probability"] == pytest.approx(expected.answers[0].probability, abs=1e-6)
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            ask({"inputs": {"image": ["no image"]}})
        assert "row 0 of 'image' cannot be read as an image" in refused.value.read().decode()
