"""The best and the last checkpoint of a run as models of MLflow, named `best` and `last`.

A model's folder is laid out like a run's, so that every command takes it as one:

MLmodel                      how MLflow loads the model: by `LOADER`, a module of this package
requirements.txt             exact versions of the packages that this takes; also as conda.yaml and python_env.yaml
input_example.json           an image as a row of a table; as a request in serving_input_example.json
checkpoints/epoch-00010/     the network, its settings and classes, and their hashes

It holds no code and no pickled object. MLflow's own `log_model` is not used: it changes MLflow's global state, and
spends seconds on comparing the requirements with every installed package.
"""

from __future__ import annotations

import base64
import io
import json
import platform
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Object, Property
from PIL import Image

from pipeline.runs import checkpoint_store, history, paths, trained_model
from pipeline.runs.trained_model import FILES, Which

LOADER = "pipeline.inference.served_model"
PACKAGES = ("mlflow", "phasecollapse", "torch")
DIGEST_TAG, CHECKPOINT_TAG = "phasecollapse.digest", "phasecollapse.checkpoint"
"""Tags of a model: SHA-256 of its weights, and the name of its checkpoint."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Tag that MLflow's pages show as the description."""
_ANSWER = {"class": DataType.string, "id": DataType.string, "probability": DataType.double}
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image")]),
    outputs=Schema(
        [
            *(ColSpec(kind, name) for name, kind in _ANSWER.items()),
            ColSpec(Array(Object([Property(name, kind) for name, kind in _ANSWER.items()])), "top5"),
        ]
    ),
)
"""See `LOADER`."""


def log_models(client: MlflowClient, run_id: str, folder: Path) -> dict[Which, LoggedModel]:
    """Logs the best and the last checkpoint of a run, unless its MLflow run has them.

    What was interrupted is completed: a model is found by the SHA-256 of its weights.

    Args:
        client: of the store.
        run_id: of the run in MLflow.
        folder: of the run.

    Returns:
        The models that the run has now; none if no checkpoint is whole.

    Raises:
        MlflowException: the store is unreachable, or refuses.
        OSError: the same, or a checkpoint cannot be read.
    """
    run = client.get_run(run_id)
    checkpoints = trained_model.best_and_last(folder)
    return {which: _log(client, run, which, folder, checkpoint) for which, checkpoint in checkpoints.items()}


def find_models(client: MlflowClient, run: Run, name: str, digest: str | None = None) -> list[LoggedModel]:
    """The models of a run with a name, the newest first, whatever their status.

    Args:
        digest: SHA-256 of the weights; None for any.
    """
    wanted = f"source_run_id = '{run.info.run_id}' AND name = '{name}'"
    if digest:
        wanted += f" AND tags.`{DIGEST_TAG}` = '{digest}'"
    newest_first = [{"field_name": "creation_timestamp", "ascending": False}]
    return list(client.search_logged_models([run.info.experiment_id], wanted, order_by=newest_first))


def _log(client: MlflowClient, run: Run, which: Which, folder: Path, checkpoint: Path) -> LoggedModel:
    digest = checkpoint_store.describe(checkpoint).files[paths.MODEL]
    found = find_models(client, run, which, digest)
    if found and found[0].status == LoggedModelStatus.READY:
        return found[0]
    record = _record(folder, checkpoint)
    model = found[0] if found else _create(client, run, which, checkpoint, digest, record)
    if model.model_id not in {one.model_id for one in (run.outputs.model_outputs if run.outputs else ())}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, _step(record) if record else 0)])
    if record:
        client.log_batch(run.info.run_id, metrics=_metrics(record, model, run))
    with tempfile.TemporaryDirectory(prefix="phasecollapse-") as scratch:
        write(Path(scratch), model, checkpoint)
        client.log_model_artifacts(model.model_id, scratch)
    for name in (*FILES, paths.DESCRIPTION):
        client.log_model_artifact(model.model_id, str(checkpoint / name), f"{paths.CHECKPOINTS}/{checkpoint.name}")
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _create(
    client: MlflowClient, run: Run, which: Which, checkpoint: Path, digest: str, record: history.EpochRecord | None
) -> LoggedModel:
    scores = ", ".join(f"{key} {100 * value:.2f} %" for key, value in _scores(record)) if record else "within an epoch"
    description = f"{checkpoint.name} of {run.info.run_name}: {scores}"
    return client.create_logged_model(
        run.info.experiment_id,
        which,
        source_run_id=run.info.run_id,
        tags={DIGEST_TAG: digest, CHECKPOINT_TAG: checkpoint.name, DESCRIPTION_TAG: description},
        params=run.data.params,
        model_type="image classification",
    )


def _scores(record: history.EpochRecord) -> list[tuple[str, float]]:
    """The accuracies of an evaluation after an epoch."""
    return [(key, value) for key, value in record.metrics.items() if re.fullmatch(r"(?!train/).+/top[15]", key)]


def _record(folder: Path, checkpoint: Path) -> history.EpochRecord | None:
    """Metrics of the epoch after which a checkpoint was saved; None for one within an epoch."""
    return next((one for one in history.read(folder) if paths.RunPosition(one.epoch).name == checkpoint.name), None)


def _step(record: history.EpochRecord) -> int:
    """Where the run's own rows of the epoch are on their curves."""
    return record.epoch if record.step is None else record.step


def _metrics(record: history.EpochRecord, model: LoggedModel, run: Run) -> list[Metric]:
    """The run's own rows of the epoch, which MLflow stores once, linked to the model and the run's data set."""
    time = int(record.finished_at * 1000)
    data = next((one.dataset for one in (run.inputs.dataset_inputs if run.inputs else ())), None)
    links = {
        "model_id": model.model_id,
        "run_id": run.info.run_id,
        "dataset_name": data and data.name,
        "dataset_digest": data and data.digest,
    }
    return [Metric(key, value, time, _step(record), **links) for key, value in record.metrics.items()]


def write(folder: Path, model: LoggedModel, checkpoint: Path) -> None:
    """Writes the files of a model into `folder`, except the checkpoint itself."""
    described = trained_model.describe(checkpoint)
    _write_environment(folder, list(map(_requirement, PACKAGES)))
    info = _write_example(folder, described.settings.data.image_size)
    files = checkpoint_store.describe(checkpoint).files
    content = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model.model_id,
        model_uuid=model.model_id,
        signature=SIGNATURE,
        saved_input_example_info=info,
        model_size_bytes=sum((checkpoint / name).stat().st_size for name in FILES),
        metadata={
            "checkpoint": checkpoint.name,
            "sha256": {name: files[name] for name in FILES},
            "image_size": described.settings.data.image_size,
            "classes": len(described.classes),
        },
    )
    # As mlflow.pyfunc.add_to_model does, the import of which warns of types of its own.
    environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    content.add_flavor(
        "python_function", loader_module=LOADER, python_version=platform.python_version(), env=environment
    )
    content.save(str(folder / "MLmodel"))


def _requirement(package: str) -> str:
    try:
        return f"{package}=={version(package).partition('+')[0]}"  # +cpu is on no package index
    except PackageNotFoundError:  # it runs from a checkout
        return package


def _write_environment(folder: Path, requirements: list[str]) -> None:
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    python = platform.python_version()
    files: dict[str, Mapping[str, object]] = {
        "python_env.yaml": {"python": python, "dependencies": ["-r requirements.txt"]},
        "conda.yaml": {"channels": ["conda-forge"], "dependencies": [f"python={python}", "pip", {"pip": requirements}]},
    }
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


def _write_example(folder: Path, side: int) -> dict[str, str]:
    """Writes a gray image as an example; returns what the file MLmodel says of it."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(file, "PNG")
    table = {"columns": ["image"], "data": [[base64.b64encode(file.getvalue()).decode()]]}
    example, request = "input_example.json", "serving_input_example.json"
    (folder / example).write_text(json.dumps(table), encoding="utf-8")
    (folder / request).write_text(json.dumps({"dataframe_split": table}), encoding="utf-8")
    return {"type": "dataframe", "pandas_orient": "split", "artifact_path": example, "serving_input_path": request}
