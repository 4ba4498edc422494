"""Claims about whole networks: golden vectors are met, seeds decide weights, sizes and costs are those stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.model_schema import ScatteringSettings
from pipeline.models import build, multiply_adds, parameters
from tests import parity

REQUIRED_GOLDEN = ("cifar_collapse", "cifar_collapse_skip", "imagenet_collapse")


@pytest.mark.parametrize("name", REQUIRED_GOLDEN)
def test_golden_vectors_are_met_in_float32(shared: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(shared / "golden" / f"{name}.npz")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("nonlinearity", ["threshold", "sigmoid", "tanh", "unit_modulus"])
def test_other_nonlinearities_meet_their_golden_vectors(shared: Path, nonlinearity: str) -> None:
    assert parity.main([str(shared / "golden" / f"cifar_{nonlinearity}.npz")]) == 0


def test_parity_fails_on_wrong_numbers(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "golden" / "cifar_collapse.npz") as archive:
        golden = dict(archive)
    golden["block1_weight"] = golden["block1_weight"] * (1 + 0.01j)
    golden["block1_weight"][0] *= 1.01
    np.savez(tmp_path / "wrong.npz", **golden)
    assert parity.main([str(tmp_path / "wrong.npz")]) == 1


def test_seed_decides_the_weights() -> None:
    model = ScatteringSettings(widths=(4, 4))
    weights = [build(model, 10, 16, seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(
        weights[0]["network.blocks.0.projection.weight"], weights[2]["network.blocks.0.projection.weight"]
    )


def test_the_papers_cifar_network_ends_at_two_pixels() -> None:
    widths = (64, 128, 256, 512, 512, 512, 512, 512)
    with torch.device("meta"):
        network = build(ScatteringSettings(widths=widths), 10, 32).network
    assert [block.wavelets.output[0] for block in network.blocks] == [32, 16, 16, 8, 8, 4, 4, 2]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("nonlinearity", ["collapse", "identity"])
def test_counted_multiply_adds_are_those_executed(nonlinearity: str, skip: bool) -> None:
    model = ScatteringSettings(widths=(4, 6, 5), first_factorized_block=1, nonlinearity=nonlinearity, skip=skip)
    network = build(model, 10, 24).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 24, 24, 3, dtype=torch.uint8))
    assert 2 * multiply_adds(model, 10, 24) == counter.get_total_flops()


def test_a_complex_parameter_counts_as_two() -> None:
    network = build(ScatteringSettings(widths=(4,), first_factorized_block=1), 10, 16)
    in_channels, positions = 3 * 5, 6 * 6
    assert network.network.blocks[0].wavelets.output == (8, 8)
    positions = 8 * 8
    assert parameters(network) == 2 * 4 * in_channels + 2 * 8 + 8 * positions * 10 + 10


def test_weight_decay_spares_normalization_and_biases() -> None:
    names = build(ScatteringSettings(widths=(4,), nonlinearity="sigmoid"), 10, 16).no_decay_names()
    assert names == {
        f"network.{name}"
        for name in (
            "blocks.0.operator_gain",
            "blocks.0.operator_bias",
            "classifier.normalization.weight",
            "classifier.normalization.bias",
            "classifier.linear.bias",
        )
    }


def test_bfloat16_autocast_is_close_to_float32() -> None:
    network = build(ScatteringSettings(widths=(8, 8)), 10, 16).eval()
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        exact = network(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(pixels)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()
