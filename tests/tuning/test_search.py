"""Claims about what a search says before it starts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline.models import multiply_adds
from tuning import plan, search_folder
from tuning.cli import tune
from tuning.config import load
from tuning.search_folder import Record
from tuning.trials import session


@pytest.fixture
def file(textures: Path, tmp_path: Path) -> Path:
    content = {
        "train": {
            "data": {"path": str(textures), "image_size": 16, "flip": False},
            "run": {"storage": str(tmp_path / "runs")},
            "training": {"epochs": 3, "batch_size": 20},
            "tracking": {"pictures": False},
        },
        "search": {"name": "s", "space": {"depth": [1, 2], "width": [4]}, "grace_epochs": 1},
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def dry_run(file: Path, *overrides: str) -> Result:
    return CliRunner().invoke(tune, [str(file), "--dry-run", *overrides])


def test_the_plan_names_the_trials_and_their_work_and_writes_nothing(file: Path, tmp_path: Path) -> None:
    done = dry_run(file)
    assert done.exit_code == 0, done.output
    table = [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert table == ["trial", "---", "4", "4-4"]
    planned = plan.dry_run(load(file, []))
    networks = [load(file, []).train.model.model_copy(update={"widths": widths}) for widths in ((4,), (4, 4))]
    assert [row.multiply_adds for row in planned.networks] == [multiply_adds(each, 10, 16) for each in networks]
    work = 3 * 3 * planned.images_per_epoch * sum(row.multiply_adds for row in planned.networks)
    assert f"at most {work:.2e} multiply-adds" in done.stdout and planned.images_per_epoch < 240
    assert re.search(r"^time +at most \S.* s for 4-4, the largest, and .* s for all trials", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]


def test_the_plan_of_a_searcher_that_learns_shows_the_first_points(file: Path, tmp_path: Path) -> None:
    space = "search.space={depth: [1, 2], width: {integer: [2, 40]}}"
    overrides = [space, "search.searcher=optuna", "search.trials=15", "search.initial_points=[{depth: 2, width: 2}]"]
    done = dry_run(file, *overrides)
    assert done.exit_code == 0, done.output
    planned = plan.dry_run(load(file, overrides))
    assert (len(planned.networks), planned.unseen) == (11, 4) and "2-2" in {row.name for row in planned.networks}
    assert "14 points that optuna proposes one by one: 10 are shown" in done.stdout
    assert re.search(r"^trials +15 to train", done.stdout, re.MULTILINE)
    shown = sum(row.multiply_adds for row in planned.networks)
    assert planned.multiply_adds == pytest.approx(shown * 15 / 11)
    assert "if all networks are like those shown" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]
    few = plan.dry_run(load(file, [*overrides, "search.trials=4"]))
    assert (len(few.networks), few.unseen) == (4, 0)


def test_trials_that_have_ended_are_not_planned_again(file: Path, textures: Path) -> None:
    settings = load(file, [])
    with search_folder.claim(settings, load_manifest(textures)) as folder:
        folder.begin()
        folder.update("4", Record(status="completed", errors={3: 0.5}))
    planned = plan.dry_run(settings)
    assert [row.name for row in planned.networks] == ["4-4"] and planned.ended == 1
    with search_folder.claim(settings, load_manifest(textures)) as folder:
        folder.update("4-4", Record(status="failed", errors={}))
    done = dry_run(file)
    assert done.exit_code == 0 and "time         none, as every trial has ended" in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("search.scheduler=pbt", "'search.scheduler' is 'pbt'"),
        ("train.data.image_size=999", "data.image_size"),
        ("train.data.path=nowhere", "nowhere"),
        ("search.searcher=optuna search.trials=3 search.warm_start=[gone] search.name=t", "search.warm_start: .*gone"),
        (
            "search.candidates=[{widths: [4], model.nonlinearity: none}] search.name=t",
            "4_nonlinearity-none: setting",
        ),
        ("train.start.checkpoint=models:/none", "start.checkpoint: nothing is tracked in .*mlflow.db"),
        ("train.training.batch_size=30", "was started with other settings .*batch_size"),
    ],
)
def test_what_the_search_would_refuse_is_refused(file: Path, textures: Path, change: str, says: str) -> None:
    with search_folder.claim(load(file, []), load_manifest(textures)) as folder:
        folder.begin()
    with pytest.raises(UserError, match=says):
        plan.dry_run(load(file, re.split(r" (?=search)", change)))


def test_what_finalists_would_be_refused_for_is_refused(file: Path, textures: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(textures, tmp_path / "copy")
    for shard in copy.glob("validation-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    changes = [f"train.data.path={copy}"]
    assert len(plan.dry_run(load(file, changes)).networks) == 2, "trials are measured on images held out"
    with pytest.raises(UserError, match=r"validation-00000\.beton is not an FFCV file"):
        plan.dry_run(load(file, [*changes, "search.finalists=1"]))


@pytest.mark.parametrize(("workers", "share", "at_once"), [(1, 0.2, 10), (1, 0.4, 4), (2, 0.5, 1), (1, 1.0, 2)])
def test_as_many_trials_train_at_once_as_have_their_share_of_a_gpu(
    file: Path, workers: int, share: float, at_once: int
) -> None:
    settings = load(file, ["train.cluster.gpu=true", f"train.cluster.workers={workers}", f"search.gpu_share={share}"])
    assert session.trials_that_fit(settings, {"CPU": 64, "GPU": 2}) == at_once


def test_workers_that_do_not_fit_are_named(file: Path) -> None:
    done = dry_run(file, "train.cluster.workers=99", "train.training.batch_size=200")
    assert "warning: train.cluster.workers: 99 workers with 1 CPU each: too many, as this machine has" in done.stderr
