"""Claims about what short recipes add: averaged weights, images that grow, other optimizers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import SGD, AdamW

from data_prep.common.errors import UserError
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import OptimizerSettings, Settings
from pipeline.inference import evaluation
from pipeline.launch import launcher
from pipeline.runs import paths, trained_model
from pipeline.training import setup
from pipeline.training.dataloader import ImageStream
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import image_size
from tests.helpers.runs import assert_same_bits

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(
    textures: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[..., Settings]:
    """Settings of a short run of a pooled network, named after the test."""
    storage = tmp_path_factory.getbasetemp() / "recipes"
    content: dict[str, Any] = {
        "data": {"path": str(textures), "image_size": 48, "flip": False},
        "run": {"storage": str(storage), "name": re.sub(r"\W+", "-", request.node.name)},
        "model": {"widths": [4, 4], "classifier": "pooled"},
        "optimizer": {"learning_rate": 0.05, "ema_decay": 0.8},
        "training": {"epochs": 3, "batch_size": 40, "initial_image_size": 16},
        "tracking": {"pictures": False},
        "cluster": {"workers": 0},
    }
    return lambda *overrides: settings_io.resolve(Settings, settings_io.override(content, overrides), "test")


def test_images_grow_linearly_and_end_at_the_full_size(settings: Callable[..., Settings]) -> None:
    chosen = settings("data.image_size=200", "training.initial_image_size=128", "training.epochs=10")
    sizes = [image_size(chosen, epoch) for epoch in range(1, 11)]
    assert sizes == [128, 144, 144, 160, 176, 176, 192, 200, 200, 200]
    plain = settings("training.initial_image_size=null")
    assert {image_size(plain, epoch) for epoch in range(1, 4)} == {48}


def test_epochs_see_images_of_their_size(settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[int]] = {}

    class Watched(ImageStream):
        def epoch(self, epoch: int, start: int = 0) -> Any:
            for batch in super().epoch(epoch, start):
                seen.setdefault(epoch, set()).add(batch.images.shape[1])
                yield batch

    monkeypatch.setattr(setup, "ImageStream", Watched)
    launcher.train(settings("training.epochs=4", "optimizer.ema_decay=0"), progress=False)
    assert seen == {1: {16, 48}, 2: {32, 48}, 3: {32, 48}, 4: {48}}, "validation images are of full size"


def test_what_is_learned_on_small_images_is_what_larger_ones_go_on_with(settings: Callable[..., Settings]) -> None:
    grown = launcher.train(settings(), progress=False)
    fixed = launcher.train(settings("training.initial_image_size=null", "run.name=fixed"), progress=False)
    assert grown.metrics["train/loss"] == pytest.approx(fixed.metrics["train/loss"], rel=0.3)
    assert grown.metrics["train/loss"] != fixed.metrics["train/loss"]


@pytest.mark.parametrize("last", [4, 9, 13])
def test_a_run_that_is_killed_ends_with_the_same_bits(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    class Killed(BaseException):
        pass

    class Mortal(ImageStream):
        steps_left = last

        def epoch(self, epoch: int, start: int = 0) -> Any:
            for batch in super().epoch(epoch, start):
                if len(batch.labels) == 40:
                    Mortal.steps_left -= 1
                    if Mortal.steps_left < 0:
                        raise Killed
                yield batch

    whole = launcher.train(settings("run.name=whole"), progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "ImageStream", Mortal)
        with pytest.raises(Killed):
            launcher.train(settings("checkpoint.every_steps=1"), progress=False)
    resumed = launcher.train(settings(), progress=False)
    assert_same_bits(whole.folder, resumed.folder)
    ends = [load_file(paths.stored_checkpoints(run.folder)[-1] / paths.LAST) for run in (whole, resumed)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_the_average_follows_its_formula(settings: Callable[..., Settings]) -> None:
    options = (
        "training.epochs=1",
        "checkpoint.every_steps=1",
        "checkpoint.keep=100",
        "training.initial_image_size=null",
    )
    run = launcher.train(settings(*options), progress=False).folder
    stored = [path for path in paths.stored_checkpoints(run) if "-step-" in path.name]
    assert len(stored) == 6
    learned = {name for name, _ in trained_model.load(run).network.named_parameters()}
    average: dict[str, Tensor] = {}
    for path in stored:
        last = {name: value.double() for name, value in load_file(path / paths.LAST).items() if name in learned}
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in last.items()} if average else last
        kept = load_file(path / paths.MODEL)
        for name, value in average.items():
            torch.testing.assert_close(kept[name].double(), value, rtol=1e-5, atol=1e-6)


def test_what_is_stored_is_what_was_evaluated(settings: Callable[..., Settings], textures: Path) -> None:
    outcome = launcher.train(settings(), progress=False)
    found = evaluation.evaluate(outcome.folder, textures, evaluation.Options(), lambda images: None)
    assert found.loss == pytest.approx(outcome.metrics["validation/loss"], rel=1e-5)
    ends = paths.stored_checkpoints(outcome.folder)[-1]
    used, last = load_file(ends / paths.MODEL), load_file(ends / paths.LAST)
    assert not all(torch.equal(value, last[name]) for name, value in used.items())


def test_statistics_of_the_average_are_its_own(settings: Callable[..., Settings], textures: Path) -> None:
    """They are close to those of its first batch of training images, and those of the last weights are not it."""
    outcome = launcher.train(settings("training.initial_image_size=null"), progress=False)
    ends = paths.stored_checkpoints(outcome.folder)[-1]
    used, last = load_file(ends / paths.MODEL), load_file(ends / paths.LAST)
    statistics = [name for name in used if "running" in name or "mean" in name or "variance" in name]
    assert any(not torch.equal(used[name], last[name]) for name in statistics)


def test_growing_needs_a_network_for_every_size(settings: Callable[..., Settings]) -> None:
    with pytest.raises(UserError, match=r"initial_image_size needs model\.classifier=pooled"):
        settings("model.classifier=flatten")
    with pytest.raises(UserError, match=r"initial_image_size \(64\) must not exceed data.image_size \(48\)"):
        settings("training.initial_image_size=64")


def test_optimizers_are_torchs() -> None:
    network = models.build(ScatteringSettings(widths=(2,)), classes=2, image_size=8, seed=0)
    sgd = build_optimizer(network, OptimizerSettings(momentum=0.8, nesterov=False))
    adamw = build_optimizer(network, OptimizerSettings(kind="adamw", learning_rate=0.002, momentum=0.8))
    assert isinstance(sgd, SGD) and not sgd.defaults["nesterov"] and sgd.defaults["momentum"] == 0.8
    assert isinstance(adamw, AdamW) and adamw.defaults["betas"] == (0.8, 0.999)
