"""Claims about what is said of trained networks, on data sets and on single files."""

from __future__ import annotations

import csv
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.manifest import load_manifest
from data_prep.loading.loader import Loader
from data_prep.prepare.dataset_writer import prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.folders import ClassFolders
from pipeline.cli.models import evaluate as evaluate_command
from pipeline.cli.models import predict as predict_command
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import (
    ClusterSettings,
    DataSettings,
    OptimizerSettings,
    RunSettings,
    Settings,
    TrainingSettings,
)
from pipeline.inference import evaluation, prediction
from pipeline.inference.evaluation import Options
from pipeline.launch import launcher
from pipeline.launch.launcher import Outcome
from pipeline.metrics import report
from pipeline.metrics.report import EvaluationReport
from pipeline.runs import paths, trained_model
from pipeline.tracking.mlflow_store import registry
from pipeline.tracking.mlflow_store.store import default_store

CLASSES = ("disc", "square", "stripes")


def picture(name: str, seed: int) -> bytes:
    """A bright shape on a dark, noisy ground."""
    random = np.random.default_rng([seed, CLASSES.index(name)])
    pixels = random.integers(0, 60, (48, 48, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:48, :48]
    center = random.integers(18, 30, 2)
    inside = {
        "disc": (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < 120,
        "square": (abs(rows - center[0]) < 10) & (abs(columns - center[1]) < 10),
        "stripes": (rows + seed) % 6 < 3,
    }[name]
    pixels[inside] += np.uint8(150)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def folders(root: Path, names: tuple[str, ...]) -> Path:
    for split, count, first in (("train", 40, 0), ("val", 21, 1000)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number:03}.jpg").write_bytes(picture(name, first + number))
    return root


def prepared(source: Path) -> Path:
    images = ClassFolders(source)
    prepare(images, source.with_name(f"{source.name}-set"), PrepareSpec.of(images, shard_samples=50), ThreadExecutor(1))
    return source.with_name(f"{source.name}-set")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def shapes(root: Path) -> Path:
    return prepared(folders(root / "shapes", CLASSES))


@pytest.fixture(scope="module")
def trained(root: Path, shapes: Path) -> Outcome:
    """A network that classifies most shapes correctly."""
    settings = Settings(
        data=DataSettings(path=str(shapes), image_size=24, random_crop=False, center_crop=1.0),
        run=RunSettings(name="shapes", storage=str(root / "runs")),
        model=ScatteringSettings(widths=(6, 8)),
        optimizer=OptimizerSettings(learning_rate=0.02),
        training=TrainingSettings(epochs=3, batch_size=20),
        cluster=ClusterSettings(workers=0),
    )
    return launcher.train(settings, progress=False)


@pytest.fixture(scope="module")
def result(trained: Outcome, shapes: Path) -> EvaluationReport:
    return evaluation.evaluate(trained.folder, shapes, Options(), lambda images: None)


def test_it_measures_what_the_training_measured(trained: Outcome, result: EvaluationReport) -> None:
    assert result.images == 63 and result.skipped_images == 0
    assert result.top1 == pytest.approx(trained.metrics["validation/top1"])
    assert result.loss == pytest.approx(trained.metrics["validation/loss"], rel=1e-5)
    assert result.top5 == 1.0, "there are three classes"
    assert result.data_digest == load_manifest(Path(result.data)).digest


def test_a_run_ends_with_the_same_report_in_its_folder_and_in_mlflow(
    trained: Outcome, result: EvaluationReport
) -> None:
    uri = MlflowClient(default_store(trained.folder.parent).uri).get_run(trained.run_id).info.artifact_uri
    for folder in (trained.folder / "evaluation", Path(uri.removeprefix("file://")) / "evaluation"):
        written = json.loads((folder / report.EVERYTHING).read_text())
        assert written["confusion"] == result.confusion
        assert written["calibration_error"] == pytest.approx(result.calibration_error, abs=1e-6)
        assert written["mistakes"] == [pytest.approx(asdict(one), abs=1e-5) for one in result.mistakes]


def test_tables_and_calibration_follow_their_formulas(trained: Outcome, shapes: Path, result: EvaluationReport) -> None:
    network = trained_model.load(trained.folder).network
    loader = Loader(shapes, "validation", batch_size=63, size=24, augmentations=[evaluation.CenterCrop(1.0)])
    (batch,) = loader.epoch(0)
    with torch.inference_mode():
        scores = network(torch.from_numpy(batch.images)).double().softmax(1).numpy()
    answers = scores.argmax(1)
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (batch.labels, answers), 1)
    assert result.confusion == expected.tolist()
    for one, row in zip(result.classes, expected, strict=True):
        assert (one.id, one.images) == (CLASSES[result.classes.index(one)], 21)
        assert one.top1 == pytest.approx(row[result.classes.index(one)] / 21)
    confidence = scores.max(1)
    bins = np.minimum((confidence * 15).astype(int), 14)
    members = [bins == number for number in set(bins.tolist())]
    right = answers == batch.labels
    error = sum(abs(right[each].mean() - confidence[each].mean()) * each.mean() for each in members)
    assert result.calibration_error == pytest.approx(error, abs=1e-5)


def test_classes_are_found_by_their_ids(root: Path, trained: Outcome, result: EvaluationReport) -> None:
    part = prepared(folders(root / "part", CLASSES[1:]))
    found = evaluation.evaluate(trained.folder, part, Options(), lambda images: None)
    assert [one.id for one in found.classes] == ["square", "stripes"]
    assert [one.top1 for one in found.classes] == [one.top1 for one in result.classes[1:]]
    assert found.confusion[0] == [0, 0, 0]


def test_classes_that_the_network_does_not_know_are_named(trained: Outcome, textures: Path) -> None:
    with pytest.raises(UserError, match=r"the network has no class \S+ .*; it has 3, from disc to stripes"):
        evaluation.evaluate(trained.folder, textures, Options(), lambda images: None)


def test_averaging_with_the_mirror_image_changes_probabilities_alone(
    trained: Outcome, shapes: Path, result: EvaluationReport
) -> None:
    flipped = evaluation.evaluate(trained.folder, shapes, Options(flip=True), lambda images: None)
    assert flipped.images == result.images
    assert flipped.loss != result.loss
    assert flipped.loss == pytest.approx(result.loss, rel=0.5)


def test_the_command_writes_tables_and_a_picture(
    trained: Outcome, shapes: Path, tmp_path: Path, result: EvaluationReport
) -> None:
    threads = torch.get_num_threads()
    done = CliRunner().invoke(
        evaluate_command, [str(trained.folder), str(shapes), "--output", str(tmp_path / "out"), "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert f"top-1 {100 * result.top1:.2f} %" in done.stdout
    assert done.stdout.count("\n") == 5
    assert torch.get_num_threads() == threads
    written = json.loads((tmp_path / "out" / report.EVERYTHING).read_text())
    assert written["confusion"] == result.confusion
    rows = list(csv.DictReader((tmp_path / "out" / report.TABLE).read_text().splitlines()))
    assert [row["id"] for row in rows] == list(CLASSES)
    assert result.mistakes, "there is something to show"
    for name in (paths.CONFUSION, paths.MISTAKES):
        with Image.open(tmp_path / "out" / name) as drawn:
            assert min(drawn.size) > 300


def test_a_tracked_run_and_a_registered_model_can_be_evaluated(
    trained: Outcome, shapes: Path, result: EvaluationReport
) -> None:
    storage = trained.folder.parent
    registry.register(str(trained.folder), "shapes", which="last", alias="champion", storage=storage)
    for name in (f"runs:/{trained.run_id}", "models:/shapes@champion"):
        command = [name, str(shapes), "--storage", str(storage), "--json"]
        done = CliRunner().invoke(evaluate_command, command)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["confusion"] == result.confusion


def test_predictions_are_those_of_the_evaluation(trained: Outcome, root: Path, result: EvaluationReport) -> None:
    files = prediction.find([root / "shapes" / "val"]).files
    assert len(files) == 63
    found = list(prediction.predict(trained.folder, files, top=2, batch_size=10))
    right = [one.answers[0].id == Path(one.file).parent.name for one in found]
    assert sum(right) / len(right) == pytest.approx(result.top1)
    assert all(len(one.answers) == 2 and one.answers[0].probability >= one.answers[1].probability for one in found)


def test_any_kind_of_image_is_read_and_what_is_none_is_named(trained: Outcome, root: Path, tmp_path: Path) -> None:
    with Image.open(io.BytesIO(picture("disc", 3))) as image:
        image.convert("RGBA").save(tmp_path / "a.png")
        image.resize((1500, 900)).save(tmp_path / "b.webp")
    (tmp_path / "c.jpg").write_bytes(picture("square", 4)[:200])
    (tmp_path / "notes.txt").write_text("no image")
    done = CliRunner().invoke(predict_command, [str(trained.folder), str(tmp_path), "--top", "1"])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert " % " in lines[0] and " % " in lines[1] and "c.jpg  cannot be read: " in lines[2]
    passed_over = f"warning: 1 passed over (names that end in .txt), such as {tmp_path / 'notes.txt'}\n"
    assert done.stderr == f"{passed_over}1 of 3 files cannot be read\n"
    done = CliRunner().invoke(predict_command, [str(trained.folder), str(tmp_path / "a.png"), "--json"])
    assert sorted(one["name"] for one in json.loads(done.stdout)["answers"]) == list(CLASSES)
    for places, message in (
        ([tmp_path / "nowhere"], "does not exist"),
        ([root / "runs" / "shapes" / "checkpoints"], "no images in"),
    ):
        with pytest.raises(UserError, match=message):
            prediction.find(places)


def test_files_of_a_folder_that_are_not_looked_at_are_counted_and_odd_metadata_is_no_warning(
    trained: Outcome, tmp_path: Path
) -> None:
    for name in ("IMG_1.HEIC", "IMG_2.heic", "unnamed", ".hidden.jpg"):
        (tmp_path / name).write_bytes(picture("disc", 3))
    with Image.open(io.BytesIO(picture("disc", 3))) as image:
        palette = image.quantize(4)
        palette.info["transparency"] = b"\x00\x10"
        palette.save(tmp_path / "odd.png")  # Pillow warns that it should be converted by way of RGBA
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = CliRunner().invoke(predict_command, [str(trained.folder), str(tmp_path), "--top", "1"])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    said = [line.partition(", such as")[0] for line in done.stderr.splitlines()]
    assert said == [
        "warning: 1 passed over (hidden files and known clutter)",
        "warning: 2 passed over (names that end in .heic)",
        "warning: 1 passed over (names without an ending)",
    ]


@pytest.mark.parametrize("name", [report.TABLE, paths.CONFUSION, report.EVERYTHING])
def test_a_report_that_cannot_be_written_is_refused_before_the_evaluation(tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    command = [str(tmp_path / "no-run"), str(tmp_path / "no-data"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(evaluate_command, command)
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(f"--output: {tmp_path / 'out'} cannot be written: Is a directory")
