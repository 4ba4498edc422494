"""Claims about checkpoints and the history that they carry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import DataSettings, OptimizerSettings, Settings
from pipeline.runs import history, paths, train_state
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule

CLASSES = [ImageClass(index=index, id=f"n{index:08}", name=name) for index, name in enumerate(["tench", "church"])]
SETTINGS = Settings(
    data=DataSettings(path="somewhere", image_size=16),
    model=ScatteringSettings(widths=(3, 4)),
    optimizer=OptimizerSettings(learning_rate=0.05, warmup_epochs=1),
)


def start() -> train_state.TrainState:
    network = models.build(SETTINGS.model, len(CLASSES), SETTINGS.data.image_size, seed=0)
    optimizer = build_optimizer(network, SETTINGS.optimizer)
    return train_state.TrainState(network, optimizer, build_schedule(optimizer, SETTINGS.optimizer, 3, 2), history=[])


def train_an_epoch(state: train_state.TrainState) -> None:
    epoch = state.epochs_done + 1
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(2):
        images = torch.randint(0, 256, (6, 16, 16, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 2, (6,), generator=generator)
        state.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(state.network(images), labels).backward()
        state.optimizer.step()
        state.schedule.step()
    state.history.append(history.EpochRecord(epoch, 1000.0 + epoch, {"train/loss": 1 / epoch}))


def weights(state: train_state.TrainState) -> dict[str, Tensor]:
    return state.network.state_dict()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a training after its first epoch."""
    state = start()
    train_an_epoch(state)
    train_state.save(tmp_path, state, SETTINGS, CLASSES)
    return tmp_path


def test_a_restored_training_continues_to_the_same_bits(saved: Path) -> None:
    uninterrupted, resumed = start(), start()
    train_state.restore(saved, resumed)
    assert resumed.epochs_done == 1
    for _ in range(3):
        train_an_epoch(uninterrupted)
    for _ in range(2):
        train_an_epoch(resumed)
    assert resumed.history == uninterrupted.history
    for name, value in weights(uninterrupted).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert resumed.schedule.get_last_lr() == uninterrupted.schedule.get_last_lr()


def test_momentum_and_schedule_matter_for_that(saved: Path) -> None:
    whole, weights_only = start(), start()
    train_state.restore(saved, whole)
    weights_only.network.load_state_dict(whole.network.state_dict())
    train_an_epoch(whole)
    weights_only.history = whole.history[:1]
    train_an_epoch(weights_only)
    assert any(not torch.equal(value, weights(weights_only)[name]) for name, value in weights(whole).items())


def test_a_checkpoint_executes_no_code(saved: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (saved / "executed",))

    torch.save({"optimizer": Exploit()}, saved / paths.TRAINING)
    with pytest.raises(UserError, match="damaged"):
        train_state.restore(saved, start())
    assert not (saved / "executed").exists()


@pytest.mark.parametrize("file", [train_state.MODEL, paths.TRAINING])
def test_a_damaged_checkpoint_is_refused_by_name(saved: Path, file: str) -> None:
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=str(saved)):
        train_state.restore(saved, start())


def test_a_checkpoint_of_another_network_is_refused(saved: Path) -> None:
    network = models.build(ScatteringSettings(widths=(3, 5)), 2, 16)
    optimizer = build_optimizer(network, SETTINGS.optimizer)
    other = train_state.TrainState(network, optimizer, build_schedule(optimizer, SETTINGS.optimizer, 3, 2), [])
    with pytest.raises(UserError, match="does not fit the network"):
        train_state.restore(saved, other)


def test_history_is_read_as_it_was_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    assert history.read(tmp_path) == []
    records = [history.EpochRecord(epoch, 1e9 + epoch / 3, {"a/b": epoch / 7}) for epoch in (1, 2)]
    history.write(tmp_path, records)
    assert history.read(tmp_path) == records
    history.write(tmp_path, records[:1])
    assert history.read(tmp_path) == records[:1]
    assert [path.name for path in tmp_path.iterdir()] == [paths.HISTORY], "nothing half-written is left"
    assert json.loads((tmp_path / paths.HISTORY).read_text())[0]["epoch"] == 1
