"""Claims about what a GPU needs: one graph for the whole network, no complex numbers, no synchronization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.model_schema import ModelSettings, ResNetSettings, ScatteringSettings
from pipeline.models import build

pytestmark = pytest.mark.slow

SIZE, CLASSES = 40, 3  # wavelet transforms of the first block have windows, those of the second are whole
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "_unique2", "equal")
"""Operations that need a number from the device before the program can continue."""
NETWORKS: dict[str, ModelSettings] = {
    "collapse": ScatteringSettings(widths=(3, 4), first_factorized_block=1),
    "skip": ScatteringSettings(widths=(3, 4), skip=True, classifier="pooled"),
    "sigmoid": ScatteringSettings(widths=(3, 4), nonlinearity="sigmoid", projection="real"),
    "threshold": ScatteringSettings(widths=(3, 4), nonlinearity="threshold", standardize=False, normalize=False),
    "checkpointed": ScatteringSettings(widths=(3, 4), first_factorized_block=1),
    "resnet": ResNetSettings(family="resnet", depth=20, stem="cifar", width_multiplier=0.25, nonlinearity="absolute"),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator), torch.arange(4) % CLASSES


def train(network: nn.Module, compiled: nn.Module | Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Loss, gradients and statistics of one step."""
    images, labels = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = compiled(images)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    return [
        loss.detach(),
        *(value.grad for value in network.parameters() if value.grad is not None),
        *network.buffers(),
    ]


def assert_fit_for_a_gpu(operation: str, values: Any) -> None:
    assert not any(operation.startswith(f"aten.{name}.") for name in WAITING), operation
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            assert not value.is_complex(), operation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph_gives_the_same_numbers_and_waits_for_none(name: str, dtype: torch.dtype) -> None:
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    eager, network = (build(NETWORKS[name], CLASSES, SIZE, seed=1) for _ in range(2))
    if name == "checkpointed":
        network.enable_activation_checkpointing()
    compiled = torch.compile(network, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    # Compilers keep float32 between operations that round to bfloat16 one by one.
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for ours, expected in zip(train(network, compiled, dtype), train(eager, eager, dtype), strict=True):
        assert (ours - expected).float().norm() <= tolerance * expected.float().norm() + 1e-5
    assert len(graphs) == 2  # forward and backward
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    assert len(nodes) > 100
    for node in nodes:
        assert_fit_for_a_gpu(str(node.target), node.meta.get("val"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nor_does_a_step_without_a_compiler(name: str, dtype: torch.dtype) -> None:
    class OperationCheck(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            assert_fit_for_a_gpu(str(func), (args, kwargs, result))
            self.seen += 1
            return result

    network = build(NETWORKS[name], CLASSES, SIZE)
    images, labels = batch()
    with OperationCheck() as check:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits, labels).backward()
    assert check.seen > 100


def test_inductor_compiles_the_whole_network() -> None:
    settings = ScatteringSettings(widths=(3,), first_factorized_block=1)
    eager, network = (build(settings, CLASSES, SIZE, seed=1) for _ in range(2))
    for ours, expected in zip(train(network, torch.compile(network, fullgraph=True)), train(eager, eager), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
