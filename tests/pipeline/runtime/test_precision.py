"""Claims about float32: it is not TensorFloat-32, wherever a network computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.config.schema import Settings
from pipeline.inference import evaluation
from pipeline.training import setup


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def state() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_training_turns_it_off(tf32: None) -> None:
    setup.configure_torch(Settings.model_validate({"data": {"path": "x"}}))
    assert state() == ("highest", False)


def test_evaluation_turns_it_off(tf32: None) -> None:
    with evaluation.computing(gpu=False, bfloat16=False, threads=1):
        assert state() == ("highest", False)
