"""Claims about code that is registered from outside: what fails or answers wrongly is named in a sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.common.registry import explain_faults
from data_prep.format.manifest import ImageClass, load_manifest
from data_prep.loading.transforms import Augmentation, Crops, Draws, augment_pixels, choose_crops
from data_prep.sources import registry as sources
from data_prep.sources.image_index import IMAGES, ImageIndex
from data_prep.sources.registry import SourceType, list_images
from pipeline import models
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import OptimizerSettings
from pipeline.config.settings_io import resolve
from pipeline.metrics import epoch as epoch_metrics
from pipeline.models import nonlinearities, resnet
from pipeline.models.nonlinearities import Nonlinearity
from pipeline.models.resnet import RealNonlinearity
from pipeline.runs import paths, train_state
from pipeline.runs.train_state import TrainState
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import loop, optimizers, schedules
from pipeline.training.callbacks import Callback, NamedCallback, StepEnd
from pipeline.training.loop import Compute, evaluate
from pipeline.training.optimizers import OptimizerKind, build_optimizer
from pipeline.training.schedules import build_schedule
from tests.helpers.registries import register
from tuning import schedulers, searchers
from tuning.config import SearchSettings

Patch = pytest.MonkeyPatch
HERE = rf" in {__file__}, line \d+ \(ZeroDivisionError: division by zero\): correct it$"


def fail(*arguments: object) -> Any:
    """Code that has a defect."""
    return 1 / 0


def test_the_place_of_a_defect_is_named_and_the_exception_kept() -> None:
    with pytest.raises(UserError, match=f"^metric x failed{HERE}") as caught, explain_faults("metric x"):
        fail()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with (
        pytest.raises(UserError, match=r"^metric x failed \(TypeError: .*unexpected keyword.*\): correct it$"),
        explain_faults("metric x"),
    ):
        fail(unknown=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "error", [UserError("a sentence"), MemoryError(), torch.OutOfMemoryError("CUDA"), KeyboardInterrupt()]
)
def test_what_is_no_defect_of_the_code_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, explain_faults("metric x"):
        raise error
    assert caught.value is error


def test_a_defect_of_this_package_keeps_its_traceback() -> None:
    with pytest.raises(TypeError) as caught, explain_faults("metric x"):
        schedules.cosine(None, 1, 0, 1, OptimizerSettings())  # type: ignore[arg-type]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "cosine"


class Scores(torch.nn.Module):
    """A network whose logits are its pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].float().mean(2)


def evaluated(batches: int = 1) -> dict[str, float] | None:
    pixels, labels = torch.arange(4 * 6 * 3).view(4, 1, 6, 3).to(torch.uint8), torch.tensor([0, 1, 2, 5])
    batch = SimpleNamespace(images=pixels, labels=labels, indices=labels, size=4, skipped=0, end=4)
    return evaluate(Scores(), [batch] * batches, compute=Compute(torch.device("cpu")))


def test_a_metric_sees_the_batches_of_the_data_set_only(monkeypatch: Patch) -> None:
    seen = []

    def third_best(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(tuple(logits.shape))
        return (logits.topk(3, dim=1).indices[:, 2] == labels).sum()

    register(monkeypatch, epoch_metrics, "METRICS", "third_best", third_best)
    monkeypatch.setattr(loop, "METRICS", epoch_metrics.METRICS)
    found = evaluated(2)
    assert found and seen == [(4, 6), (4, 6)] and 0 <= found["validation/third_best"] <= 1


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (fail, f"^metric mine failed{HERE}"),
        (
            lambda logits: logits.sum(),
            r"^metric mine failed \(TypeError: .* takes 1 positional argument but 2 were given\)",
        ),
        (
            lambda logits, labels: 0.5,
            r"^metric mine returns float instead of a scalar tensor: the sum over the images$",
        ),
        (lambda logits, labels: labels == 1, r"^metric mine returns a tensor \(4,\) instead of a scalar tensor"),
        (lambda logits, labels: logits.sum() * float("nan"), r"^metric mine is nan over all images: return a finite "),
        (lambda logits, labels: -logits.sum() / 0, r"^metric mine is -inf over all images: return a finite sum"),
    ],
)
def test_a_metric_that_fails_is_named(monkeypatch: Patch, metric: Callable[..., Any], says: str) -> None:
    register(monkeypatch, epoch_metrics, "METRICS", "mine", metric)
    monkeypatch.setattr(loop, "METRICS", epoch_metrics.METRICS)
    with pytest.raises(UserError, match=says):
        evaluated()


@pytest.mark.parametrize("hook", ["on_step_end", "on_evaluation_end", "on_checkpoint"])
def test_a_callback_that_fails_is_named_with_its_hook(hook: str, tmp_path: Path) -> None:
    callback = NamedCallback("mine", type("Mine", (Callback,), {hook: fail})(), ProgressWriter(tmp_path))
    with pytest.raises(UserError, match=f"^callback mine: {hook} failed{HERE}"):
        getattr(callback, hook)(None)


def test_a_callback_that_returns_no_action_is_named(tmp_path: Path) -> None:
    class Forgetful(Callback):
        def on_step_end(self, event: StepEnd) -> Any:
            return None

    event: Any = None
    with pytest.raises(UserError, match=r"^callback mine: on_step_end returns None: return StepAction\.NOTHING"):
        NamedCallback("mine", Forgetful(), ProgressWriter(tmp_path)).on_step_end(event)


def test_the_end_of_a_callback_cannot_fail_a_run(tmp_path: Path) -> None:
    NamedCallback("mine", type("Mine", (Callback,), {"on_fit_end": fail})(), ProgressWriter(tmp_path)).on_fit_end()
    assert "callback mine: on_fit_end failed in" in (tmp_path / paths.EVENTS).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("nonlinearity", "says"),
    [
        (Nonlinearity(fail), f"^model.nonlinearity: mine failed{HERE}"),
        (
            Nonlinearity(lambda z: z[:, :1]),
            r"^model.nonlinearity: mine returns torch.float32 \(1, 1, .* as real is False",
        ),
        (
            Nonlinearity(lambda z: z, real=True),
            r"returns torch.float32 \(1, 2, .* instead of .* \(1, 1, .* real is True",
        ),
        (Nonlinearity(lambda z: z.relu() > 0), r"returns torch.bool "),
        (Nonlinearity(lambda z: z.tolist()), r"returns list for z \(1, 2, 1, 3, 2, 1, 2, 3\)"),
        (Nonlinearity(lambda z: z, {"gain": 1.0}), r"mine failed \(TypeError: .* takes 1 positional argument but 2"),
    ],
)
def test_a_nonlinearity_that_fails_is_named_when_a_block_is_built(
    monkeypatch: Patch, nonlinearity: Nonlinearity, says: str
) -> None:
    register(monkeypatch, nonlinearities, "NONLINEARITIES", "mine", nonlinearity)
    nonlinearities.find.cache_clear()
    with pytest.raises(UserError, match=says):
        models.build(ScatteringSettings(widths=(4,), nonlinearity="mine"), 2, 16, 0)
    nonlinearities.find.cache_clear()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (fail, f"^model.nonlinearity: real failed{HERE}"),
        (
            lambda x: x[:, :1],
            r"^model.nonlinearity: real returns torch.float32 \(2, 1, 2, 2\) for x of float32 \(2, 3, 2, 2\)",
        ),
        (lambda x: x.double(), r"returns torch.float64 "),
    ],
)
def test_a_nonlinearity_of_residual_networks_likewise(
    monkeypatch: Patch, function: Callable[..., Any], says: str
) -> None:
    register(monkeypatch, resnet, "NONLINEARITIES", "real", RealNonlinearity(function))
    resnet.find_nonlinearity.cache_clear()
    with pytest.raises(UserError, match=says):
        resnet.Activation("real", 4)
    resnet.find_nonlinearity.cache_clear()


def of_crops(change: Callable[[Crops], Any]) -> Augmentation:
    return type("Mine", (Augmentation,), {"crop": lambda self, crops, *others: change(crops)})()


@pytest.mark.parametrize(
    "change",
    [
        lambda crops: crops._replace(top=crops.top - 1),
        lambda crops: crops._replace(left=crops.left + 1),
        lambda crops: crops._replace(height=crops.height * 0),
        lambda crops: crops._replace(width=crops.width + 1),
        lambda crops: Crops(*(part[:2] for part in crops)),
    ],
)
def test_an_augmentation_whose_rectangle_leaves_its_image_is_named(change: Callable[[Crops], Crops]) -> None:
    sides = np.array([8, 9, 10])
    with pytest.raises(UserError, match=r"^augmentation Mine (returned a rectangle that|failed)"):
        choose_crops([of_crops(change)], sides, sides, Draws(0, 1, np.arange(3)))


def test_an_augmentation_that_fails_is_named() -> None:
    sides = np.array([8, 9, 10])
    with pytest.raises(UserError, match=r"^augmentation Mine failed in .*ZeroDivisionError"):
        choose_crops([of_crops(fail)], sides, sides, Draws(0, 1, np.arange(3)))
    pixels, draws = np.zeros((3, 4, 4, 3), np.uint8), Draws(0, 1, np.arange(3))
    with pytest.raises(UserError, match=f"^augmentation Mine failed{HERE}"):
        augment_pixels([type("Mine", (Augmentation,), {"apply": fail})()], pixels, draws)
    with pytest.raises(UserError, match=r"^augmentation Mine returned NoneType\s+instead of uint8 \(3, 4, 4, 3\)"):
        augment_pixels([type("Mine", (Augmentation,), {"apply": lambda *_: None})()], pixels, draws)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (fail, f"^optimizer.kind: the builder of mine failed{HERE}"),
        (lambda groups, settings: groups, r"^optimizer.kind: the builder of mine returns list: return an Optimizer$"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_named(monkeypatch: Patch, build: Callable[..., Any], says: str) -> None:
    register(monkeypatch, optimizers, "OPTIMIZERS", "mine", OptimizerKind(build, 0))
    network = models.build(ScatteringSettings(widths=(4,)), 2, 16, 0)
    with pytest.raises(UserError, match=says):
        build_optimizer(network, OptimizerSettings(kind="mine"))


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (fail, f"^optimizer.schedule: mine failed{HERE}"),
        (lambda *_: None, r"^optimizer.schedule: mine failed \(TypeError: "),
        (lambda *_: float("inf"), r"^optimizer.schedule: mine returns inf for step 0: return a finite factor$"),
    ],
)
def test_a_schedule_that_fails_is_named(monkeypatch: Patch, schedule: Callable[..., Any], says: str) -> None:
    register(monkeypatch, schedules, "SCHEDULES", "mine", schedule)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match=says):
        build_schedule(optimizer, OptimizerSettings(schedule="mine"), epochs=1, steps_per_epoch=4)


def test_a_name_that_stands_for_another_optimizer_than_before_is_noticed(tmp_path: Path) -> None:
    settings = OptimizerSettings()

    def state(kind: str) -> TrainState:
        network = models.build(ScatteringSettings(widths=(4,)), 2, 16, 0)
        optimizer = build_optimizer(network, settings.model_copy(update={"kind": kind}))
        return TrainState(network, optimizer, build_schedule(optimizer, settings, 1, 4), history=[])

    train_state.save(tmp_path, state("sgd"), search_settings().train, [])
    train_state.restore(tmp_path, state("sgd"))
    says = r"^optimizer\.kind: checkpoint .* is of another optimizer, with .*nesterov.* instead of .*betas"
    with pytest.raises(UserError, match=says):
        train_state.restore(tmp_path, state("adamw"))


def search_settings(**search: object) -> SearchSettings:
    content = {
        "train": {"data": {"path": "x"}},
        "search": {"name": "s", "space": {"depth": [2], "width": [4]}, **search},
    }
    return resolve(SearchSettings, content, "search.yaml")


def test_a_searcher_or_scheduler_that_fails_is_named(monkeypatch: Patch, textures: Path) -> None:
    data = load_manifest(textures)
    register(monkeypatch, searchers, "SEARCHERS", "broken", fail)
    register(monkeypatch, searchers, "SEARCHERS", "widths", lambda settings: [(4, 8)])
    register(monkeypatch, schedulers, "SCHEDULERS", "broken", fail)
    register(monkeypatch, schedulers, "SCHEDULERS", "nothing", lambda settings: None)
    with pytest.raises(UserError, match=rf"^search\.searcher: broken failed{HERE}"):
        searchers.choose(search_settings(searcher="broken"), data)
    with pytest.raises(UserError, match=r"^search\.searcher: widths yields \(4, 8\): yield Candidates$"):
        searchers.choose(search_settings(searcher="widths"), data)
    with pytest.raises(UserError, match=rf"^search\.scheduler: the builder of broken failed{HERE}"):
        schedulers.build_scheduler(search_settings(scheduler="broken"), {}, {})
    with pytest.raises(UserError, match=r"builder of nothing returns NoneType: return a TrialScheduler$"):
        schedulers.build_scheduler(search_settings(scheduler="nothing"), {}, {})


def test_a_source_that_fails_is_named(monkeypatch: Patch) -> None:
    module = "tests.project.test_registered_code"
    monkeypatch.setitem(globals(), "recognizes", fail)
    monkeypatch.setitem(globals(), "open_source", lambda location, class_names=None: object())
    register(monkeypatch, sources, "SOURCES", "broken", SourceType(module))
    with pytest.raises(UserError, match=rf"^source {module}: recognizes failed{HERE}"):
        SourceType(module).recognizes(sources.FolderNames("x", frozenset()))
    with pytest.raises(UserError, match=rf"^source {module}: open_source returns object, without all of location, "):
        sources.open_source("x", kind="broken")


def table(**columns: list[Any]) -> pa.Table:
    whole = {"label": [0, 1], "name": ["a", "b"], "file": ["f", "f"], "offset": [0, 9], "size": [9, 9], **columns}
    return pa.table(whole, IMAGES)


CLASSES = [ImageClass(index=index, id=identity, name=identity) for index, identity in enumerate("xy")]
INDEX = ImageIndex(CLASSES, {"train": table(), "validation": table()})


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (fail, rf"failed{HERE}"),
        ([], "an index in which list stands instead of an ImageIndex"),
        (replace(INDEX, classes=[CLASSES[0], CLASSES[0]]), "two classes have the id x"),
        (replace(INDEX, splits={"train": table()}), "the splits are train instead of train, validation"),
        (replace(INDEX, splits={"train": table(), "test": table()}), "the splits are train, test instead"),  # type: ignore[dict-item]
        (replace(INDEX, splits={"train": table(), "validation": pa.table({"label": [1]})}), "no table of the schema"),
        (replace(INDEX, splits={"train": table(name=["a", None]), "validation": table()}), "lacks a value"),
        *(
            (replace(INDEX, splits={"train": table(), "validation": table(**{name: values})}), says)
            for name, values, says in (
                ("label", [-1, 0], r"the label of images of the validation split is from -1 to 0, outside 0 … 1"),
                ("label", [0, 2], r"the label of images of the validation split is from 0 to 2, outside 0 … 1"),
                ("offset", [-1, 0], "the offset of images of the validation split is from -1 to 0"),
                ("size", [2**40, 1], "the size of images of the validation split is from 1 to"),
            )
        ),
    ],
)
def test_an_index_that_contradicts_itself_is_named(index: Any, says: str, tmp_path: Path) -> None:
    source: Any = SimpleNamespace(kind="mine", list=index if callable(index) else lambda scratch, executor: index)
    with pytest.raises(UserError, match=rf"^source mine: list .*{says}"):
        list_images(source, tmp_path, ThreadExecutor(1))
    source.list = lambda scratch, executor: INDEX
    assert list_images(source, tmp_path, ThreadExecutor(1)) is INDEX
