"""Claims about loading a trained network in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_prep.common.errors import UserError
from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.runs import paths, trained_model
from tests.helpers.checkpoints import save_checkpoint

SCATTERING = ScatteringSettings(widths=(3, 4))
PIXELS = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "model",
    [SCATTERING, ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.25)],
    ids=lambda model: model.family,
)
def test_a_checkpoint_alone_gives_the_network_its_settings_and_its_classes(
    tmp_path: Path, model: ModelSettings
) -> None:
    network = save_checkpoint(tmp_path / "saved", model)
    loaded = trained_model.load(tmp_path / "saved")
    assert loaded.settings.model == model
    assert loaded.classes == ("name of a", "name of b", "name of c")
    assert not loaded.network.training
    with torch.no_grad():
        assert torch.equal(loaded.network(PIXELS), network(PIXELS))


def test_of_a_run_the_last_checkpoint_that_is_there_in_full_is_loaded(tmp_path: Path) -> None:
    checkpoints = tmp_path / paths.CHECKPOINTS
    save_checkpoint(checkpoints / "epoch-00009", SCATTERING, seed=1)
    last = save_checkpoint(checkpoints / "epoch-00010", SCATTERING, seed=2)
    save_checkpoint(checkpoints / "partial-epoch-00011", SCATTERING, seed=3)
    (checkpoints / "epoch-00011").mkdir()  # as it is while Ray uploads
    loaded = trained_model.load(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded.network(PIXELS), last(PIXELS))


def test_what_is_no_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        trained_model.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a checkpoint, nor a run: it has no model.safetensors"):
        trained_model.load(tmp_path)
    (tmp_path / paths.IDENTITY).touch()
    with pytest.raises(UserError, match=r"has no checkpoint yet"):
        trained_model.load(tmp_path)


@pytest.mark.parametrize("file", [paths.MODEL, paths.SETTINGS, paths.CLASSES, paths.DESCRIPTION])
@pytest.mark.parametrize("damage", ["a byte has changed", "missing"])
def test_a_checkpoint_that_is_not_what_was_written_is_refused_and_a_whole_one_named(
    tmp_path: Path, file: str, damage: str
) -> None:
    run = tmp_path / "run"
    whole, last = (run / paths.CHECKPOINTS / name for name in ("epoch-00009", "epoch-00010"))
    for folder in (whole, last):
        save_checkpoint(folder, SCATTERING)
    if damage == "missing":
        (last / file).unlink()
    else:
        content = bytearray((last / file).read_bytes())
        content[len(content) // 2] ^= 1
        (last / file).write_bytes(content)
    for path in (run, last):
        with pytest.raises(UserError, match=rf"epoch-00010 is damaged .*: name {whole}, the newest one that is whole"):
            trained_model.load(path)
    trained_model.load(whole)


@pytest.mark.parametrize("file", [paths.MODEL, paths.SETTINGS, paths.CLASSES])
@pytest.mark.parametrize("damage", ["halved", "missing", "nested"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, file: str, damage: str) -> None:
    saved = tmp_path / "saved"
    save_checkpoint(saved, SCATTERING)
    content = (saved / file).read_bytes()
    (saved / file).unlink()
    if damage == "halved":
        (saved / file).write_bytes(content[: len(content) // 2])
    if damage == "nested":
        (saved / file).write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=str(saved)):
        trained_model.load(saved)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", SCATTERING)
    save_checkpoint(tmp_path / "other", ScatteringSettings(widths=(3, 5)))
    (tmp_path / "other" / paths.MODEL).replace(tmp_path / "saved" / paths.MODEL)
    with pytest.raises(UserError, match=r"does not fit the network"):
        trained_model.load(tmp_path / "saved")


def test_loading_executes_nothing_that_a_checkpoint_holds(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    save_checkpoint(tmp_path / "saved", SCATTERING)
    torch.save({"mean": Exploit()}, tmp_path / "saved" / paths.MODEL)
    with pytest.raises(UserError, match=r"damaged"):
        trained_model.load(tmp_path / "saved")
    assert not (tmp_path / "executed").exists()
