"""How many bytes a training step moves through memory, and in how many operations: by part of the network.

    python -m benchmarks.model_traffic --geometry imagenet --precision bf16
    python -m benchmarks.model_traffic --geometry cifar --skip --precision bf16 --path cpu

A step is forward, loss, backward and the optimizer's step, as in training. Nothing is computed: tensors have shapes and
types and no numbers (torch's FakeTensorMode), so that this needs neither a GPU nor time. Operations are counted where
torch dispatches them, below autograd; views are free, and so is memory that is only reserved. Each operation reads its
inputs once, or what it selects of them, and writes its results once; caches and what a kernel reads twice do not show.
With `--path gpu` the Triton kernels of `pipeline.models.kernels` stand for what they replace: a launch is one operation
that moves each of its tensors once. A part is the function or class of `pipeline.models` that an operation runs in;
what autograd derives by itself runs in none. The last line is JSON:

    megabytes_per_image     10⁶ bytes read and written, for one image
    operations              in a step
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from benchmarks import options
from benchmarks.geometries import GEOMETRIES, Geometry
from benchmarks.options import PRECISIONS
from pipeline.config.schema import OptimizerSettings
from pipeline.models import kernels
from pipeline.models.scattering import ScatteringNetwork
from pipeline.models.tiling import CPU_TILES, GPU_TILES
from pipeline.training.optimizers import sgd

BATCH = 16
RESERVING = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
)
"""Operations that touch no number."""
SELECTING = ("index_select", "gather", "index", "embedding", "slice_scatter")
"""Operations that read as much of their first input as they return."""
OVERWRITING = ("copy_", "zero_", "fill_", "_foreach_zero_", "_foreach_copy_")
"""Operations in place that do not read what they replace."""
MODELS = "pipeline.models."
WITHOUT_PART = "derived by autograd, loss"


class Traffic(TorchDispatchMode):
    """Counts bytes and operations of the body, by part and by name of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = Counter[str](), Counter[str]()
        """By part."""
        self.bytes_of, self.times_of = Counter[str](), Counter[str]()
        """By name of the operation."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        moved = moved_bytes(func, args, kwargs or {}, result)
        if moved:
            self.add(func.overloadpacket.__name__, moved)
        return result

    def launch(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        """Counts the launch of a kernel."""
        self.add(f"kernel {kernel.fn.__name__.strip('_')}", sum(map(size, tensors([args, kwargs]))))

    def clear(self) -> None:
        """Counts from here on."""
        for total in (self.bytes, self.operations, self.bytes_of, self.times_of):
            total.clear()

    def add(self, name: str, moved: int) -> None:
        """Counts an operation."""
        part = part_of(sys._getframe(1))
        for total, key, amount in (
            (self.bytes, part, moved),
            (self.operations, part, 1),
            (self.bytes_of, name, moved),
            (self.times_of, name, 1),
        ):
            total[key] += amount


def moved_bytes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that an operation reads and writes; 0 for views, and for operations that touch no number."""
    name, schema = func.overloadpacket.__name__, func._schema
    if name in RESERVING or any(one.alias_info and not one.alias_info.is_write for one in schema.returns):
        return 0
    given = dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
    written = {one.name for one in schema.arguments if one.alias_info and one.alias_info.is_write}
    results = tensors([given[one] for one in written if one in given]) or tensors(result)
    if not results:
        return 0
    total = sum(map(size, results))
    for place, argument in enumerate(schema.arguments):
        if argument.name not in given or (argument.name in written and (argument.kwarg_only or name in OVERWRITING)):
            continue
        read = sum(map(size, tensors(given[argument.name])))
        total += min(read, total) if place == 0 and name in SELECTING else read
    return total


def size(x: Tensor) -> int:
    """Bytes of the numbers that a tensor refers to; repeated ones count once."""
    return math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.element_size()


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [one for one in tree_flatten(tree)[0] if isinstance(one, Tensor)]


def part_of(frame: FrameType | None) -> str:
    """The part of the network, or the optimizer, in whose code an operation runs."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(MODELS) and not module.startswith(kernels.__name__):
            return f"{module.removeprefix(MODELS)}.{frame.f_code.co_qualname.partition('.')[0]}"
        if module.startswith("torch.optim"):
            return "optimizer"
        frame = frame.f_back
    return WITHOUT_PART


@contextmanager
def on_gpu_path(launch: Callable[..., None]) -> Iterator[None]:
    """The body takes the way of a GPU; instead of running, each kernel is given to `launch`, with its arguments."""
    from triton.runtime.jit import JITFunction

    with mock.patch.object(kernels, "of", lambda x: kernels.load()), mock.patch.object(JITFunction, "run", launch):
        yield


def count(geometry: Geometry, skip: bool, dtype: torch.dtype, batch: int, gpu: bool) -> Traffic:
    """The traffic of a training step."""
    traffic = Traffic()
    with training_step(geometry, skip, dtype, batch, gpu) as step, ExitStack() as stack:
        if gpu:
            stack.enter_context(on_gpu_path(lambda *args, **kwargs: traffic.launch(*args, **kwargs)))
        step()  # what the first step makes for all
        traffic.clear()
        with traffic:
            step()
    return traffic


@contextmanager
def training_step(
    geometry: Geometry, skip: bool, dtype: torch.dtype, batch: int, gpu: bool
) -> Iterator[Callable[[], None]]:
    """A training step that computes nothing, while the body runs."""
    mode = FakeTensorMode()
    network = _without_numbers(geometry.network(skip, GPU_TILES if gpu else CPU_TILES), mode)
    with mode:
        images = torch.empty(batch, 3, geometry.size, geometry.size)
        labels = torch.empty(batch, dtype=torch.long)
        groups = [{"params": list(network.parameters()), "weight_decay": 1e-4}]
        optimizer = sgd(groups, OptimizerSettings(learning_rate=0.1))

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = network(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

        yield step


def _without_numbers(network: ScatteringNetwork, mode: FakeTensorMode) -> ScatteringNetwork:
    """The network with tensors that have no numbers, in place."""
    for module in network.modules():
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else mode.from_tensor(value)
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(mode.from_tensor(parameter.data))
    return network


def _print(title: str, amounts: Counter[str], times: Counter[str], batch: int, most: int) -> None:
    print(f"{title:<44}{'MB an image':>12}{'operations':>12}")
    for name, amount in amounts.most_common(most):
        print(f"  {name:<42}{amount / batch / 1e6:>12.1f}{times[name]:>12,}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), required=True, help="the paper's network")
    parser.add_argument("--skip", action="store_true", help="with skip connection")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32", help="[%(default)s]")
    parser.add_argument("--batch", type=options.count, default=BATCH, help="images in a step [%(default)s]")
    parser.add_argument("--path", choices=("gpu", "cpu"), default="gpu", help="whose code is counted [%(default)s]")
    chosen = parser.parse_args()
    traffic = count(
        GEOMETRIES[chosen.geometry], chosen.skip, PRECISIONS[chosen.precision], chosen.batch, chosen.path == "gpu"
    )
    total, operations = sum(traffic.bytes.values()), sum(traffic.operations.values())
    _print("part", traffic.bytes, traffic.operations, chosen.batch, 30)
    _print("operation", traffic.bytes_of, traffic.times_of, chosen.batch, 15)
    print(json.dumps({"megabytes_per_image": round(total / chosen.batch / 1e6, 1), "operations": operations}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
