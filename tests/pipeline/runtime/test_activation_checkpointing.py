"""Claims about blocks that are recomputed in the backward pass: the same bits, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.models import build

SIZE = 24
NETWORKS: dict[str, ModelSettings] = {
    "collapse": ScatteringSettings(widths=(6, 8, 8), classifier="pooled"),
    "skip": ScatteringSettings(widths=(6, 8, 8), skip=True, nonlinearity="sigmoid", classifier="pooled"),
    "resnet": ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.5),
}


def step(model: ModelSettings, *, checkpointed: bool, bfloat16: bool) -> tuple[int, dict[str, Tensor]]:
    """Bytes that two forward passes keep, and gradients and statistics after their backward passes."""
    network = build(model, classes=3, image_size=SIZE, seed=1)
    if checkpointed:
        network.enable_activation_checkpointing()
    generator = torch.Generator().manual_seed(0)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(2):
        images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            loss = nn.functional.cross_entropy(network(images).float(), torch.tensor([0, 1, 2, 0]))
        loss.backward()
    gradients = {f"{name} gradient": value.grad for name, value in network.named_parameters()}
    return kept, gradients | dict(network.state_dict())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_have_the_same_bits_and_less_is_kept(name: str, bfloat16: bool) -> None:
    (much, expected), (little, found) = (
        step(NETWORKS[name], checkpointed=checkpointed, bfloat16=bfloat16) for checkpointed in (False, True)
    )
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert little < much / 4


def test_an_evaluation_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(NETWORKS["collapse"], classes=3, image_size=SIZE).eval()
    images = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    plain = network(images)
    network.enable_activation_checkpointing()
    monkeypatch.setattr("pipeline.runtime.activation_checkpointing.checkpoint", None)
    assert torch.equal(network(images), plain)
