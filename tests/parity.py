"""Compares the network with golden vectors: ``python -m tests.parity FILE.npz …``.

A golden file holds a small network's weights, one batch, and what one training step on it computes. Every quantity is
compared as ‖a − b‖ / ‖b‖. Prints each error and, last, one JSON line with the worst of all files; the exit status is 1
above the tolerances.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.scattering import Block, BlockConfig, ScatteringNetwork, published_order
from pipeline.models.wavelets import filter_bank, octaves_of_blocks

FORWARD_TOLERANCE = 2e-4
GRADIENT_TOLERANCE = 2e-3
NONLINEARITIES = {
    "mod": "collapse",
    "cst": "threshold",
    "ms": "sigmoid",
    "tanh": "tanh",
    "mc": "unit_modulus",
    "p": "power",
}
"""Names of the non-linearities in golden files (that of power is the field's guess: no published file has it)."""


def relative_error(ours: NDArray, theirs: NDArray) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all entries."""
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def build(golden: dict[str, NDArray]) -> ScatteringNetwork:
    """The network a golden file describes, with its weights."""
    blocks = len(golden["widths"])
    network = ScatteringNetwork(
        widths=[int(width) for width in golden["widths"]],
        angles=int(golden["angles"]),
        octaves=octaves_of_blocks(blocks, int(golden["first_factorized_block"])),
        kind=BlockConfig(nonlinearity=NONLINEARITIES[str(golden["nonlinearity"])], skip=bool(golden["skip"])),
        classes=golden["classifier_weight"].shape[0],
        size=golden["input"].shape[2:],
        in_channels=golden["input"].shape[1],
    )
    with torch.no_grad():
        for number in range(blocks):
            block = network.blocks[number]
            features, acted_on = orders(block)
            block.projection.weight.copy_(from_complex(golden[f"block{number}_weight"][:, features]))
            for name in ("gain", "bias"):
                if f"block{number}_{name}" in golden:
                    ours = getattr(block, f"operator_{name}")
                    ours.copy_(torch.from_numpy(golden[f"block{number}_{name}"].flatten()[acted_on]).view_as(ours))
        classifier = network.classifier
        classifier.normalization.weight.copy_(torch.from_numpy(golden["classifier_bn_weight"]))
        classifier.normalization.bias.copy_(torch.from_numpy(golden["classifier_bn_bias"]))
        classifier.linear.weight.copy_(torch.from_numpy(golden["classifier_weight"]))
        classifier.linear.bias.copy_(torch.from_numpy(golden["classifier_bias"]))
    return network


def orders(block: Block) -> tuple[NDArray, NDArray]:
    """Index in a golden file of each channel of a block's features, and of each channel that ρ is applied to."""
    skip, angles = block.kind.skip, block.wavelets.filters - 1
    features = published_order(block.in_channels, angles, skip)
    acted_on = published_order(block.in_channels, angles, skip=False)
    return features, acted_on if skip else acted_on[block.in_channels :] - block.in_channels


def from_complex(values: NDArray) -> Tensor:
    """A complex array (…) as real numbers (2, …)."""
    return torch.from_numpy(np.stack([values.real, values.imag]))


def to_complex(values: Tensor) -> NDArray:
    """Real numbers (2, …) as a complex array (…)."""
    real, imaginary = values.detach().numpy()
    return real + 1j * imaginary


def errors(golden: dict[str, NDArray]) -> Iterator[tuple[str, str, float]]:
    """Runs one training step and one evaluation; yields (kind, quantity, relative error), kind forward or gradient."""
    network = build(golden)
    blocks: list[Block] = list(network.blocks)  # type: ignore[arg-type]
    for number, octave in enumerate(octaves_of_blocks(len(blocks), int(golden["first_factorized_block"]))):
        if f"block{number}_phi_hat" in golden:
            period = golden[f"block{number}_phi_hat"].shape
            bank = filter_bank(octave, int(golden["angles"]), *period)
            for name, ours in (("phi_hat", bank.phi), ("psi_hat", bank.psi)):
                yield (
                    "forward",
                    f"block{number}_{name}",
                    relative_error(np.fft.fft2(ours), golden[f"block{number}_{name}"]),
                )

    images = torch.from_numpy(golden["input"].astype(np.float32)).to(torch.get_default_dtype()).requires_grad_()
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in blocks]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(golden["label"]))
    loss.backward()

    for number, output in enumerate(outputs):
        theirs = golden[f"block{number}_output"]
        ours = to_complex(output.permute(1, 3, 4, 0, 2))[: theirs.shape[0], : theirs.shape[1]]
        yield "forward", f"block{number}_output", relative_error(ours, theirs)
    yield "forward", "train_logits", relative_error(logits.detach().numpy(), golden["train_logits"])
    yield "forward", "train_loss", relative_error(loss.detach().numpy(), golden["train_loss"])
    for number, block in enumerate(blocks):
        statistics, (features, _) = block.projection, orders(block)
        theirs = golden[f"block{number}_running_mean"][features]
        mean = to_complex(statistics.running_mean)
        yield "forward", f"block{number}_running_mean", relative_error(mean, theirs)
        yield (
            "forward",
            f"block{number}_running_var",
            relative_error(statistics.running_var.numpy(), golden[f"block{number}_running_var"][features]),
        )
    for name in ("running_mean", "running_var"):
        ours = getattr(network.classifier.normalization, name).numpy()
        yield "forward", f"classifier_bn_{name}", relative_error(ours, golden[f"classifier_bn_{name}"])

    for number, block in enumerate(blocks):
        features, acted_on = orders(block)
        yield (
            "gradient",
            f"block{number}_weight_grad",
            relative_error(to_complex(block.projection.weight.grad), golden[f"block{number}_weight_grad"][:, features]),
        )
        for name in ("gain", "bias"):
            if f"block{number}_{name}_grad" in golden:
                ours = getattr(block, f"operator_{name}").grad.flatten().numpy()
                theirs = golden[f"block{number}_{name}_grad"].flatten()[acted_on]
                yield "gradient", f"block{number}_{name}_grad", relative_error(ours, theirs)
    yield (
        "gradient",
        "classifier_weight_grad",
        relative_error(network.classifier.linear.weight.grad.numpy(), golden["classifier_weight_grad"]),
    )
    theirs = golden["input_grad"].astype(np.float32)
    step = images.shape[-1] // theirs.shape[-1]  # large geometries store every fourth pixel
    yield "gradient", "input_grad", relative_error(images.grad.numpy()[..., ::step, ::step], theirs)  # type: ignore[union-attr]

    network.eval()
    with torch.no_grad():
        yield "forward", "eval_logits", relative_error(network(images).numpy(), golden["eval_logits"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    worst = {"forward": 0.0, "gradient": 0.0}
    for path in parser.parse_args(arguments).files:
        with np.load(path, allow_pickle=False) as archive:
            golden = dict(archive)
        print(path.name)
        for kind, quantity, error in errors(golden):
            print(f"  {kind:8} {quantity:30} {error:.1e}")
            worst[kind] = error if math.isnan(error) else max(worst[kind], error)
    print(json.dumps(worst))
    return 0 if worst["forward"] <= FORWARD_TOLERANCE and worst["gradient"] <= GRADIENT_TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
