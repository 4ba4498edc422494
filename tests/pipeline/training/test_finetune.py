"""Claims about training that starts with the weights of another network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import Tensor

from data_prep.common.errors import UserError
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import paths, run_folder
from pipeline.tracking.mlflow_store.store import default_store
from pipeline.training import finetune
from pipeline.training.context import LocalContext
from pipeline.training.optimizers import build_optimizer
from tests.helpers.checkpoints import image_classes, save_checkpoint
from tests.helpers.fine_tuning import MODEL, settings_of, started, train_in_rank
from tests.helpers.ranks import in_ranks
from tuning import search_folder
from tuning.config import SearchSettings
from tuning.space.candidate import of_point, trial_settings

LINEAR = ("classifier.linear.weight", "classifier.linear.bias")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of MODEL for the classes a, b, c and images of 16 pixels."""
    save_checkpoint(tmp_path / "saved", MODEL, seed=7)
    return tmp_path / "saved"


def differing(network: models.ImageNetwork, checkpoint: Path) -> list[str]:
    """Names of the tensors that are not those of the checkpoint."""
    weights = load_file(checkpoint / paths.MODEL)
    state = network.state_dict()
    assert state.keys() == weights.keys()
    return [
        name.removeprefix("network.")
        for name, value in state.items()
        if value.shape != weights[name].shape or not torch.equal(value, weights[name])
    ]


def test_all_weights_and_statistics_are_those_of_the_checkpoint(saved: Path) -> None:
    settings = settings_of(saved)
    assert differing(started(settings), saved) == []
    found = finetune.check(settings, image_classes())
    assert found is not None
    assert str(found) == f"weights from {saved}"


@pytest.mark.parametrize(
    ("names", "size", "model"),
    [
        ("abcd", 16, MODEL),
        ("abd", 16, MODEL),
        ("abc", 24, MODEL),
        ("abcd", 16, ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.25)),
    ],
    ids=["more-classes", "other-classes", "other-size", "resnet"],
)
def test_the_classifiers_linear_map_alone_is_new_where_it_cannot_fit(
    tmp_path: Path, names: str, size: int, model: ModelSettings
) -> None:
    save_checkpoint(tmp_path / "saved", model)
    settings = settings_of(tmp_path / "saved", model=model, size=size)
    linear = LINEAR if model is MODEL else ("fc.weight", "fc.bias")
    network = started(settings, names)
    assert differing(network, tmp_path / "saved") == list(linear)
    unstarted = models.build(model, len(names), size, seed=1).state_dict()
    for name in linear:
        assert torch.equal(network.state_dict()[f"network.{name}"], unstarted[f"network.{name}"])
    assert str(finetune.check(settings, image_classes(names))).endswith(f"; new: {', '.join(linear)}")


def test_a_pooled_classifier_fits_images_of_any_size(tmp_path: Path) -> None:
    model = ScatteringSettings(widths=(3, 4), classifier="pooled")
    save_checkpoint(tmp_path / "saved", model)
    assert differing(started(settings_of(tmp_path / "saved", model=model, size=24)), tmp_path / "saved") == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"widths": (3, 5)}, "widths: [3, 4] → [3, 5]"),
        ({"nonlinearity": "tanh"}, "nonlinearity: collapse → tanh"),
        ({"first_factorized_block": 1}, "octaves: ['first_half', 'second_half'] → ['full', 'first_half']"),
        ({"classifier": "pooled"}, "classifier: flatten → pooled"),
    ],
)
def test_another_network_is_refused_with_what_differs(saved: Path, changes: dict[str, Any], difference: str) -> None:
    settings = settings_of(saved, model=ScatteringSettings(**{"widths": (3, 4), **changes}))
    with pytest.raises(UserError, match=re.escape(f"is another than that of model: {difference}")):
        finetune.check(settings, image_classes())


def test_the_same_network_may_be_described_by_other_settings_and_keep_other_statistics(saved: Path) -> None:
    model = ScatteringSettings(
        widths=(6, 8), width_multiplier=0.5, octaves=("first_half", "second_half"), sync_batch_stats=True
    )
    assert finetune.check(settings_of(saved, model=model), image_classes()) is not None


def test_another_family_and_a_tensor_of_another_shape_are_refused_by_name(saved: Path) -> None:
    resnet = ResNetSettings(family="resnet", depth=20, stem="cifar")
    with pytest.raises(UserError, match="family: scattering → resnet"):
        finetune.check(settings_of(saved, model=resnet), image_classes())
    save_checkpoint(saved.parent / "other", ScatteringSettings(widths=(3, 5)))
    (saved.parent / "other" / paths.MODEL).replace(saved / paths.MODEL)
    with pytest.raises(UserError, match=r"projection\.running_mean is|projection\.weight is of shape \(2, 5, "):
        finetune.check(settings_of(saved), image_classes())


def test_what_is_no_checkpoint_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"start\.checkpoint: .*nowhere does not exist"):
        finetune.check(settings_of(tmp_path / "nowhere"), image_classes())
    with pytest.raises(UserError, match=r"start\.checkpoint: .* is not a checkpoint, nor a run"):
        finetune.check(settings_of(tmp_path), image_classes())


def train_a_step(network: models.ImageNetwork, settings: Settings) -> None:
    optimizer = build_optimizer(network, settings.optimizer)
    network.train()
    pixels = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    torch.nn.functional.cross_entropy(network(pixels), torch.arange(6) % 3).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("freeze", "moving"),
    [
        (("blocks.0",), r"blocks\.1|classifier"),
        (("blocks.*",), "classifier"),
        (("blocks", "classifier.normalization"), r"classifier\.linear"),
        (("classifier", "*.1"), r"blocks\.0"),
    ],
    ids=" ".join,
)
def test_frozen_parts_and_their_statistics_stay_and_all_others_move(
    saved: Path, freeze: tuple[str, ...], moving: str
) -> None:
    settings = settings_of(saved, *freeze)
    network = started(settings)
    optimized = {
        id(value) for group in build_optimizer(network, settings.optimizer).param_groups for value in group["params"]
    }
    train_a_step(network, settings)
    expected = {name for name in network.state_dict() if re.match(rf"network\.({moving})", name)}
    assert {f"network.{name}" for name in differing(network, saved)} == expected
    assert optimized == {id(value) for name, value in network.named_parameters() if name in expected}
    assert all(value.grad is None for name, value in network.named_parameters() if name not in expected)


def test_a_name_that_matches_nothing_is_refused_with_those_that_there_are(saved: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"no part is called 'block\.0'; there are blocks, blocks\.0, blocks\.1, classifier, classifier\.no",
    ):
        finetune.check(settings_of(saved, "block.0"), image_classes())


def test_a_network_without_anything_to_train_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        finetune.check(settings_of(saved, "*"), image_classes())
    with pytest.raises(UserError, match="freeze needs checkpoint"):
        settings_io.resolve(Settings, {"data": {"path": "somewhere"}, "start": {"freeze": ["blocks"]}}, "test")


def test_a_part_that_is_new_cannot_be_frozen(saved: Path) -> None:
    with pytest.raises(UserError, match=r"start\.freeze: classifier\.linear\.weight is new"):
        finetune.check(settings_of(saved, "classifier"), image_classes("abcd"))


def test_weights_that_change_between_launch_and_worker_are_noticed(saved: Path) -> None:
    settings = settings_of(saved)
    before = finetune.digest(settings)
    shutil.rmtree(saved)
    save_checkpoint(saved, MODEL, seed=8)
    with pytest.raises(UserError, match="have changed since the run was started"):
        finetune.load(models.build(MODEL, 3, 16), settings, image_classes(), before)


def test_trials_of_a_search_start_with_the_same_weights_or_are_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "train": {"data": {"path": "somewhere", "image_size": 16}, "start": {"checkpoint": "saved"}},
        "search": {"name": "s", "candidates": [{"widths": [3, 4], "optimizer.learning_rate": 0.2}, {"widths": [5]}]},
    }
    settings = settings_io.resolve(SearchSettings, content, "test")
    points = [of_point(point, settings, "search.candidates") for point in settings.search.candidates]
    fitting, other = [trial_settings(settings, one, tmp_path / "s", "uri") for one in points]
    assert fitting.start.checkpoint == str(saved), "trials run in folders of their own"
    assert finetune.check(fitting, image_classes()) is not None
    with pytest.raises(UserError, match=r"widths: \[3, 4\] → \[5\]"):
        finetune.check(other, image_classes())


def test_workers_share_what_they_learn_and_none_moves_what_is_frozen(saved: Path, tmp_path: Path) -> None:
    one, other = in_ranks(train_in_rank, tmp_path, saved)
    before = load_file(saved / paths.MODEL)
    frozen = [name for name in before if "blocks.0." in name or "classifier.normalization" in name]
    assert len(frozen) == 3 + 5
    for name in frozen:
        assert torch.equal(one[name], before[name])
        assert torch.equal(other[name], before[name])
    learned = ["network.blocks.1.projection.weight", *(f"network.{name}" for name in LINEAR)]
    for name in learned:
        assert torch.equal(one[name], other[name])
    assert not torch.equal(one[learned[0]], before[learned[0]])
    running = "network.blocks.1.projection.running_mean"
    assert not torch.equal(one[running], other[running]), "each worker sees images of its own"


# Whole runs, on textures


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def fine_tuned(textures: Path, storage: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a run that starts with a checkpoint of three other classes and keeps its first block."""
    save_checkpoint(tmp_path / "before", MODEL, seed=7)
    content: dict[str, Any] = {
        "data": {"path": str(textures), "image_size": 16, "flip": False},
        "run": {"storage": str(storage)},
        "model": {"widths": [3, 4]},
        "start": {"checkpoint": str(tmp_path / "before"), "freeze": ["blocks.0"]},
        "training": {"epochs": 2, "batch_size": 120},
        "cluster": {"workers": 0},
    }
    return lambda *assignments: settings_io.resolve(Settings, settings_io.override(content, assignments), "test")


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(paths.stored_checkpoints(run)[-1] / paths.MODEL)


class Stops(LocalContext):
    """A worker that is interrupted after its first checkpoint."""

    def report(self, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_fine_tuned_run_says_what_it_starts_with_and_resumes_to_the_same_bits_without_it(
    fine_tuned: Callable[..., Settings],
    storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = launcher.train(fine_tuned())
    starts, *epochs = capsys.readouterr().out.splitlines()[1:]
    assert starts == (
        f"weights from {tmp_path / 'before'}; new: classifier.linear.weight, classifier.linear.bias; "
        "frozen: 90 of 5,356 parameters"
    )
    assert len(epochs) == 2
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "LocalContext", Stops)
        with pytest.raises(KeyboardInterrupt):
            launcher.train(fine_tuned("run.name=stopped"))
    digest = finetune.digest(fine_tuned())
    shutil.rmtree(tmp_path / "before")
    capsys.readouterr()
    resumed = launcher.train(fine_tuned("run.name=stopped"))
    assert "weights from" not in capsys.readouterr().out
    after, again = weights_of(whole.folder), weights_of(resumed.folder)
    assert [name for name, value in after.items() if not torch.equal(value, again[name])] == []
    run = MlflowClient(default_store(storage).uri).get_run(resumed.run_id)
    assert run.data.params["start.digest"] == digest


def test_a_fine_tuned_run_moves_all_but_what_is_frozen(fine_tuned: Callable[..., Settings], tmp_path: Path) -> None:
    outcome = launcher.train(fine_tuned("training.epochs=1"), progress=False)
    before, after = load_file(tmp_path / "before" / paths.MODEL), weights_of(outcome.folder)
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {name for name in after if "blocks.0." in name} | {"mean", "deviation"}


def test_a_run_keeps_the_weights_that_it_was_started_with(fine_tuned: Callable[..., Settings], tmp_path: Path) -> None:
    settings = fine_tuned("training.epochs=1", "run.name=kept")
    launcher.train(settings, progress=False)
    (tmp_path / "before").rename(tmp_path / "moved")
    moved = fine_tuned("training.epochs=1", "run.name=kept", f"start.checkpoint={tmp_path / 'moved'}")
    assert launcher.train(moved, progress=False).already_finished, "it is the weights that decide, not where they lie"
    save_checkpoint(tmp_path / "before", MODEL, seed=8)
    with pytest.raises(UserError, match=r"weights of start\.checkpoint: [0-9a-f]{12} → [0-9a-f]{12}"):
        launcher.train(settings, progress=False)
    with pytest.raises(UserError, match=r"weights of start\.checkpoint: [0-9a-f]{12} → new\)"):
        launcher.train(fine_tuned("training.epochs=1", "run.name=kept", "start.checkpoint=null", "start.freeze=[]"))


def test_a_default_name_depends_on_the_weights(fine_tuned: Callable[..., Settings], textures: Path) -> None:
    data = launcher.load_manifest(textures)
    names = {run_folder.default_name(fine_tuned(), data, digest) for digest in (None, "a", "b")}
    assert len(names) == 3


def test_a_search_that_is_resumed_with_other_weights_is_refused(saved: Path, textures: Path, tmp_path: Path) -> None:
    content = {
        "train": {"data": {"path": str(textures), "image_size": 16}, "run": {"storage": str(tmp_path / "runs")}},
        "search": {"name": "s", "candidates": [{"widths": [3, 4]}]},
    }
    settings = settings_io.resolve(SearchSettings, content, "test")
    data = launcher.load_manifest(textures)
    with search_folder.claim(settings, data, "one digest") as folder:
        folder.begin()
    with (
        pytest.raises(UserError, match=r"train\.start\.checkpoint holds other weights"),
        search_folder.claim(settings, data, "another"),
    ):
        pass
