"""Claims about one epoch of training and one evaluation, in this process and over two ranks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_prep.common.errors import UserError
from pipeline import models
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import OptimizerSettings
from pipeline.metrics.nonfinite import NonFiniteGuard
from pipeline.training.loop import Compute, Step, broadcast_running_stats, evaluate, train_epoch
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule
from tests.helpers.ranks import in_ranks

CPU = Compute(torch.device("cpu"))
CLASSES = 3


@dataclass(frozen=True)
class Part:
    """One rank's part of a global batch."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    size: int
    skipped: int = 0
    end: int = 0


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random pixels (N, 8, 8, 3) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, CLASSES, (count,), generator=generator)


def part(pixels: Tensor, labels: Tensor, start: int, stop: int, size: int | None = None) -> Part:
    chosen = slice(start, stop)
    return Part(pixels[chosen], labels[chosen], torch.arange(len(labels))[chosen], size or stop - start, end=stop)


def network() -> models.ImageNetwork:
    return models.build(ScatteringSettings(widths=(4,)), classes=CLASSES, image_size=8, seed=1)


class Linear(nn.Module):
    """A network whose images do not depend on each other, so that a batch may be split without changing gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layer(pixels.flatten(1) / 255.0 - 0.5)


def linear() -> Linear:
    torch.manual_seed(3)
    return Linear()


def train(model: nn.Module, batches: Sequence[Part], compute: Compute = CPU, rate: float = 0.1, **options: Any) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    sums = train_epoch(model, batches, optimizer, schedule, epoch=1, compute=compute, **options)
    assert sums is not None
    return sums.metrics()


def test_a_network_learns_its_training_images() -> None:
    pixels, labels = samples(24)
    model = network()
    optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1))
    schedule = build_schedule(optimizer, OptimizerSettings(learning_rate=0.1), epochs=30, steps_per_epoch=2)
    batches = [part(pixels, labels, 0, 12), part(pixels, labels, 12, 24)]
    results = [train_epoch(model, batches, optimizer, schedule, epoch=epoch, compute=CPU) for epoch in range(30)]
    assert results[-1].image_sums["top1"] == results[-1].images == 24
    assert results[0].image_sums["top1"] < 0.9 * 24


def test_training_reports_mean_loss_rate_of_the_last_step_and_throughput() -> None:
    pixels, labels = samples(10)
    model = linear()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.1).item()
    metrics = train(model, [part(pixels, labels, 0, 6), part(pixels, labels, 6, 10)], rate=1e-12, label_smoothing=0.1)
    assert metrics["train/loss"] == pytest.approx(expected)
    assert metrics["learning_rate"] == pytest.approx(0.5e-12)
    assert metrics["train/images_per_second"] > 0


def test_each_few_steps_have_their_own_means() -> None:
    pixels, labels = samples(10)
    model, found = linear(), []
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(pixels), labels, reduction="none")
    batches = [part(pixels, labels, start, stop) for start, stop in ((0, 6), (6, 8), (8, 10))]

    def after_step(step: Step) -> bool:
        if step.number > 1:
            found.append(step.recent())
        return True

    metrics = train(model, batches, rate=1e-12, after_step=after_step)
    assert [each["step/loss"] for each in found] == pytest.approx([losses[:8].mean().item(), losses[8:].mean().item()])
    norms = [each["step/gradient_norm"] for each in found]
    assert (2 * norms[0] + norms[1]) / 3 == pytest.approx(metrics["train/gradient_norm"], rel=1e-5)
    assert [each["step/learning_rate"] for each in found] == [0.5e-12, 0.25e-12], "of the last step"
    assert all(each["step/images_per_second"] > 0 <= each["step/waiting_for_data"] <= 1 for each in found)


def test_evaluation_is_exact_with_ragged_batches_and_leaves_the_network_unchanged() -> None:
    pixels, labels = samples(11)
    model = network()
    before = copy.deepcopy(model.state_dict())
    metrics = evaluate(model, [part(pixels, labels, 0, 8), part(pixels, labels, 8, 11)], compute=CPU)
    with torch.no_grad():
        logits = model.eval()(pixels)
    assert metrics["validation/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["validation/top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["validation/top5"] == 1.0, "there are fewer than five classes"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_top5_counts_an_image_whose_class_is_among_the_five_best() -> None:
    class Scores(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.arange(10, 0, -1).repeat(len(pixels), 1).float()

    labels = torch.tensor([0, 1, 4, 5, 9, 0])
    metrics = evaluate(Scores(), [part(torch.zeros(6, 8, 8, 3), labels, 0, 6)], compute=CPU, name="holdout")
    assert metrics["holdout/top1"] == pytest.approx(2 / 6)
    assert metrics["holdout/top5"] == pytest.approx(4 / 6)


def test_bfloat16_keeps_weights_and_loss_in_float32_and_stays_close() -> None:
    pixels, labels = samples(16)
    exact, rough = network(), network()
    batches = [part(pixels, labels, 0, 16)]
    expected = train(exact, batches)
    metrics = train(rough, batches, Compute(torch.device("cpu"), "bfloat16"))
    assert metrics["train/loss"] == pytest.approx(expected["train/loss"], rel=0.05)
    assert metrics["train/loss"] != expected["train/loss"]
    assert {value.dtype for value in rough.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("lag", [0, 3])
def test_a_loss_that_is_not_finite_names_epoch_step_and_images(lag: int) -> None:
    watch = NonFiniteGuard(epoch=7, lag=lag)
    losses = [1.0, 2.0, float("nan"), 3.0]
    with pytest.raises(UserError, match=r"loss became nan in epoch 7, step 2 \(training images 20, 21\)"):
        for step, loss in enumerate(losses):
            watch.add(step, torch.tensor([10 * step, 10 * step + 1]), torch.tensor(loss), torch.tensor(loss))
        watch.drain()


def test_training_stops_at_a_loss_that_is_not_finite() -> None:
    pixels, labels = samples(8)
    with pytest.raises(UserError, match=r"epoch 1, step [12].*learning_rate"):
        train(linear(), [part(pixels, labels, 0, 4), part(pixels, labels, 4, 8)] * 2, rate=1e38)


def train_and_evaluate(rank: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and state of one of two ranks, with different numbers of images (and of batches in the evaluation)."""
    pixels, labels = samples(11)
    model = linear()
    trained = DistributedDataParallel(model, broadcast_buffers=False)
    # Global batches of the images 0–6 and 7–10, shared as 4 + 3 and as 2 + 2.
    parts = [part(pixels, labels, 0, 4, 7), part(pixels, labels, 7, 9, 4)]
    if rank == 1:
        parts = [part(pixels, labels, 4, 7, 7), part(pixels, labels, 9, 11, 4)]
    metrics = train(trained, parts, label_smoothing=0.1)
    model.seen.fill_(rank + 5)
    broadcast_running_stats(model)
    own = [part(pixels, labels, 0, 4), part(pixels, labels, 4, 8)] if rank == 0 else [part(pixels, labels, 8, 11)]
    metrics |= evaluate(model, own, compute=CPU)
    return metrics, model.state_dict()


def test_two_ranks_compute_what_one_does_and_count_each_image_once(tmp_path: Path) -> None:
    results = in_ranks(train_and_evaluate, tmp_path)
    pixels, labels = samples(11)
    alone = linear()
    expected = train(alone, [part(pixels, labels, 0, 7), part(pixels, labels, 7, 11)], label_smoothing=0.1)
    expected |= evaluate(alone, [part(pixels, labels, 0, 11)], compute=CPU)
    assert results[0][0] == results[1][0], "all ranks report the same"
    for name, value in expected.items():
        if name not in ("train/images_per_second", "train/seconds", "train/waiting_for_data"):
            assert results[0][0][name] == pytest.approx(value, rel=1e-5), name
    for rank in range(2):
        state = results[rank][1]
        assert state["seen"] == 5, "buffers are those of rank 0"
        torch.testing.assert_close(state["layer.weight"], alone.layer.weight.detach())
