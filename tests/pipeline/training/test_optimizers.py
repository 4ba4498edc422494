"""Claims about the optimizer and its learning rate."""

from __future__ import annotations

import pytest

from pipeline import models
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import OptimizerSettings
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule, rate_factor


def rates(epochs: int, steps: int, **fields: object) -> list[float]:
    settings = OptimizerSettings.model_validate(fields)
    return [rate_factor(step, settings, epochs, steps) for step in range(epochs * steps)]


def test_cosine_starts_at_the_peak_and_falls_to_almost_zero() -> None:
    factors = rates(4, 25)
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


def test_warmup_climbs_linearly_and_reaches_the_peak_in_its_last_step() -> None:
    factors = rates(4, 10, warmup_epochs=1.5)
    assert factors[:15] == pytest.approx([(step + 1) / 15 for step in range(15)])
    assert factors[15] == 1
    assert factors[15:] == sorted(factors[15:], reverse=True)


def test_step_decay_divides_at_the_start_of_its_epochs() -> None:
    factors = rates(7, 5, schedule="step", step_epochs=3, step_factor=10)
    assert factors == pytest.approx([1.0] * 15 + [0.1] * 15 + [0.01] * 5)


def test_the_optimizer_steps_with_the_scheduled_rate() -> None:
    network = models.build(ScatteringSettings(widths=(2,)), classes=2, image_size=8, seed=0)
    settings = OptimizerSettings(learning_rate=0.3, warmup_epochs=1)
    optimizer = build_optimizer(network, settings)
    schedule = build_schedule(optimizer, settings, epochs=2, steps_per_epoch=3)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.3 * rate_factor(step, settings, 2, 3) for step in range(6)])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0])


def test_biases_and_normalization_have_no_weight_decay_and_every_parameter_is_in_one_group() -> None:
    network = models.build(ScatteringSettings(widths=(2, 3)), classes=2, image_size=16, seed=0)
    optimizer = build_optimizer(network, OptimizerSettings(weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    exempt = network.no_decay_names()
    assert exempt
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0 if name in exempt else 0.01), name
