"""Claims about batch statistics: they keep their digits, and those of two workers are those of one with all images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.models import build
from pipeline.models.batch_stats import BatchNorm, moments
from tests.helpers.ranks import RANKS, in_ranks

IMAGES, SIZE = 6, 12
NETWORKS: dict[str, ModelSettings] = {
    "collapse": ScatteringSettings(widths=(3, 4), first_factorized_block=1, sync_batch_stats=True),
    "skip": ScatteringSettings(
        widths=(3, 4), skip=True, nonlinearity="sigmoid", projection="real", sync_batch_stats=True
    ),
    "resnet": ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.25, sync_batch_stats=True),
    "checkpointed": ScatteringSettings(widths=(3, 4), first_factorized_block=1, sync_batch_stats=True),
    "checkpointed-resnet": ResNetSettings(
        family="resnet", depth=20, stem="cifar", width_multiplier=0.25, sync_batch_stats=True
    ),
}


def step(name: str, rank: int | None) -> dict[str, Tensor]:
    """Gradients and statistics after one training step, on all images or on those of one of the workers."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    network = build(NETWORKS[name], classes=3, image_size=SIZE, seed=1)
    if name.startswith("checkpointed"):
        network.enable_activation_checkpointing()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (IMAGES,), generator=generator)
    trained: nn.Module = network
    if rank is not None:
        trained = DistributedDataParallel(network, broadcast_buffers=False)
        images, labels = images.chunk(RANKS)[rank], labels.chunk(RANKS)[rank]
    nn.functional.cross_entropy(trained(images), labels).backward()
    gradients = {f"{name} gradient": value.grad for name, value in network.named_parameters()}
    return gradients | dict(network.state_dict())


def step_of_each(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: step(name, rank) for name in NETWORKS}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """For each worker: the result of a step of each network."""
    return in_ranks(step_of_each, tmp_path_factory.mktemp("workers"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("double")
def test_two_workers_with_synchronized_statistics_are_one_with_all_images(
    joined: list[dict[str, dict[str, Tensor]]], name: str
) -> None:
    alone = step(name, rank=None)
    for steps in joined:
        together = steps[name]
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            # The network's own layers end in float32.
            torch.testing.assert_close(
                together[key], value, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_alone_it_is_torchs_batch_normalization() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4, synchronized=True), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize(("scale", "shift"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_learns_scale_and_shift_where_asked(scale: bool, shift: bool, training: bool) -> None:
    normalization, reference = BatchNorm(5, scale=scale, shift=shift).train(training), nn.BatchNorm2d(5).train(training)
    assert {name for name, _ in normalization.named_parameters()} == {
        name for name, kept in (("weight", scale), ("bias", shift)) if kept
    }
    for name, value in normalization.named_parameters():
        nn.init.uniform_(value, 0.5, 1.5)
        getattr(reference, name).data.copy_(value.data)
    x = 3 * torch.randn(4, 5, 6, 7).contiguous(memory_format=torch.channels_last) + 1
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    direction = torch.randn_like(x)
    (normalization(ours) * direction).sum().backward()
    (reference(theirs) * direction).sum().backward()
    torch.testing.assert_close(normalization(ours), reference(theirs))
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, value in normalization.named_parameters():
        torch.testing.assert_close(value.grad, getattr(reference, name).grad)


@pytest.mark.parametrize("rows", [1, 12, 101, 64 * 81])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_moments_keep_their_digits_far_from_zero(rows: int, dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    x = (1000 + torch.randn(rows, 5, dtype=torch.float64)).to(dtype)
    mean, variance = moments(x)
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    assert mean.dtype == variance.dtype == dtype
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=digits)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=100 * digits)


def test_moments_of_bfloat16_are_those_of_its_numbers() -> None:
    x = (10 + torch.randn(64 * 81, 5)).bfloat16()
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    mean, variance = moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=1e-5)
