"""Claims about `phasecollapse describe`: what a network holds, what it costs, and what it learns that it should not."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.common.errors import UserError
from pipeline.analysis.model_summary import ModelSummary, describe
from pipeline.cli import main
from pipeline.config.schema import Settings
from pipeline.config.settings_io import resolve
from pipeline.models import ScatteringNetwork, build, parameters
from pipeline.models.wavelets import Octave, filter_bank

SCATTERING = {"widths": [3, 4, 2], "octaves": ["full", "first_half", "second_half"]}
RESNET = {"family": "resnet", "depth": 20, "stem": "cifar"}
NETWORKS = [
    SCATTERING,
    SCATTERING | {"skip": True, "projection": "real", "classifier": "pooled", "classifier_normalization": "none"},
    SCATTERING | {"nonlinearity": "power", "standardize": False, "normalize": False},
    SCATTERING | {"nonlinearity": "threshold", "operator_learned": False, "angles": 6},
    RESNET | {"width_multiplier": 0.25, "nonlinearity": "threshold"},
]


def settings(model: dict, size: int = 16, **training: object) -> Settings:
    content = {"data": {"path": "nowhere", "image_size": size, "classes": 5}, "model": model, "training": training}
    return resolve(Settings, content, "test")


def described(model: dict, size: int = 16, **training: object) -> ModelSummary:
    return describe(settings(model, size, **training))


def kept(network: torch.nn.Module, images: Tensor, bfloat16: bool) -> int:
    """Bytes that a forward pass on real numbers keeps."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.data_ptr()] = tensor.untyped_storage()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(images)
    assert output.requires_grad
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages.values()}.values())


@pytest.mark.parametrize("model", NETWORKS)
def test_counts_are_those_of_the_real_network(model: dict) -> None:
    description = described(model)
    network = build(settings(model).model, 5, 16)
    assert description.learned == parameters(network)
    inside = network.network.classifier if isinstance(network.network, ScatteringNetwork) else network.network.fc
    assert description.learned_in_classifier == parameters(inside)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    assert description.executed == counter.get_total_flops() // 2 == network.multiply_adds()


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_what_an_image_adds_to_a_real_training_step(model: dict, precision: str) -> None:
    network = build(settings(model).model, 5, 16).train()
    images = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    few, more = (kept(network, images[:batch], precision == "bfloat16") for batch in (2, 3))
    assert described(model, precision=precision).kept_bytes == more - few > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [SCATTERING, RESNET | {"width_multiplier": 0.25}])
def test_blocks_that_run_again_hold_their_inputs_and_one_of_them_the_rest(model: dict, precision: str) -> None:
    """Of a forward pass on real numbers: what each block is given, and what it keeps."""
    inner = build(settings(model).model, 5, 16).train().network
    blocks = list(inner.blocks) if isinstance(inner, ScatteringNetwork) else inner.blocks()
    given: list[Tensor] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda block, arguments: given.append(arguments[0].detach()))
    images, bfloat16 = torch.randn(2, 3, 16, 16), precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        inner(images)
    inputs = [x.nbytes / 2 for x in given]
    description = described(model, precision=precision, activation_checkpointing=True)
    by_block = [
        sum(layer.kept_bytes for layer in description.layers if layer.block == name)
        for name in dict.fromkeys(layer.block for layer in description.layers if layer.block)
    ]
    outside = description.kept_bytes - sum(by_block)
    assert len(by_block) == len(inputs)
    assert description.held_bytes == sum(inputs) + max(by_block) + outside < description.kept_bytes
    assert described(model, precision=precision).held_bytes == description.kept_bytes


def test_each_layer_of_a_scattering_network_executes_its_closed_form() -> None:
    model = SCATTERING | {"projection": "real"}
    network = build(settings(model, 70).model, 5, 70).network  # wide enough for windows
    assert isinstance(network, ScatteringNetwork)
    layers = {layer.name: layer for layer in described(model, 70).layers}
    for number, block in enumerate(network.blocks):
        filtered, projected = layers[f"blocks.{number}.wavelets"], layers[f"blocks.{number}.projection"]
        positions = math.prod(block.wavelets.output)
        assert filtered.executed == block.wavelets.multiply_adds(block.in_channels) > filtered.necessary > 0
        assert projected.executed == projected.necessary == positions * block.projection.multiply_adds()
    assert sum(layer.executed for layer in layers.values()) == network.multiply_adds()


def test_layers_have_the_shapes_that_the_network_computes() -> None:
    network = build(settings(SCATTERING).model, 5, 16).network
    assert isinstance(network, ScatteringNetwork)
    layers = {layer.name: layer for layer in described(SCATTERING).layers}
    for number, signal in enumerate(network.features(torch.randn(1, 3, 16, 16))):
        height, _, width, _, channels = signal.shape
        layer = layers[f"blocks.{number}.normalization"]
        assert (layer.complex_channels, layer.real_channels, layer.size) == (channels, 0, (height, width))
    first = layers["blocks.0.wavelets"]
    assert (first.complex_channels, first.real_channels) == (12, 3)  # φ of a real image is real
    collapsed = layers["blocks.1.operator"]
    assert (collapsed.complex_channels, collapsed.real_channels) == (3, 12)


def test_fixed_numbers_are_those_of_the_filters() -> None:
    description = described(SCATTERING | {"nonlinearity": "threshold", "operator_learned": False})
    fixed = {layer.name: layer.fixed for layer in description.layers}
    bank = filter_bank(Octave.FULL, 4, 20, 20)  # 16 pixels are padded to 20
    assert fixed["blocks.0.wavelets"] == bank.phi.size + 2 * bank.psi.size
    assert fixed["blocks.0.operator"] == 4 * 3  # a threshold for each filter and channel
    assert fixed["pixels"] == 6  # mean and deviation of red, green and blue


@pytest.mark.parametrize("octave", list(Octave))
def test_spectra_of_the_filters_are_real_as_the_count_of_their_products_supposes(octave: Octave) -> None:
    bank = filter_bank(octave, 8, 20, 26)
    for kernel in (bank.phi, *bank.psi):
        spectrum = np.fft.fft2(kernel)
        assert np.abs(spectrum.imag).max() < 1e-6 * np.abs(spectrum).max()


@pytest.mark.parametrize(("depth", "learned", "executed"), [(18, 11_689_512, 1_814_073_344)])
def test_resnets_have_the_counts_of_torchvision(depth: int, learned: int, executed: int) -> None:
    model = {"family": "resnet", "depth": depth}
    content = {"data": {"path": "nowhere", "image_size": 224, "classes": 1000}, "model": model}
    description = describe(resolve(Settings, content, "test"))
    assert (description.learned, description.learned_in_classifier) == (learned, 513_000)
    assert description.necessary == description.executed == executed
    assert description.overhead is None


def test_a_phase_collapse_network_learns_no_spatial_filter_and_no_bias() -> None:
    for changes in ({}, {"skip": True}, {"projection": "real"}, {"nonlinearity": "identity"}):
        description = described(SCATTERING | changes)
        assert description.kernels == description.biases == {}
        assert any(layer.biases for layer in description.layers)  # the classifier's, which are not counted


@pytest.mark.parametrize("nonlinearity", ["threshold", "sigmoid", "power"])
def test_the_bias_that_a_nonlinearity_learns_is_flagged(nonlinearity: str) -> None:
    model = SCATTERING | {"nonlinearity": nonlinearity}
    names = [f"blocks.{number}.operator_bias" for number in range(3)]
    assert described(model).biases == dict(zip(names, [12, 12, 16], strict=True))
    assert described(model | {"operator_learned": False}).biases == {}


def test_spatial_filters_and_biases_of_a_resnet_are_flagged() -> None:
    model = RESNET | {"width_multiplier": 0.25}
    description = described(model)
    assert list(description.kernels.values()) == [(3, 3)] * 19  # of 21 convolutions two are 1×1, in shortcuts
    assert description.biases["bn1.bias"] == 4
    assert len(description.biases) == 21
    without = described(model | {"biases": False})
    assert without.biases == {}
    assert without.kernels == description.kernels
    learned = described(model | {"biases": False, "nonlinearity": "threshold"}).biases
    assert len(learned) == 19
    assert all(name.endswith(".threshold") for name in learned)


def test_an_overhead_is_explained_layer_by_layer() -> None:
    description = described(SCATTERING | {"projection": "real"})
    assert description.overhead is not None
    assert "wavelet transforms as matrix products instead of fast Fourier transforms (+" in description.overhead
    assert "unknown" not in description.overhead


def test_classes_come_from_the_prepared_data_set_where_the_settings_name_none(textures: Path) -> None:
    run = resolve(Settings, {"data": {"path": str(textures), "image_size": 16}, "model": SCATTERING}, "test")
    assert describe(run).classes == 10
    assert describe(run, classes=3).classes == 3


def test_where_nothing_names_the_classes_a_sentence_says_what_to_do() -> None:
    run = resolve(Settings, {"data": {"path": "nowhere"}}, "test")
    with pytest.raises(UserError, match=r"data\.classes is not set and data\.path \(nowhere\) .* or --classes N$"):
        describe(run)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs ``phasecollapse describe`` in this process."""
    point = EntryPoint("describe", "pipeline.cli.train:describe", main.GROUP)
    monkeypatch.setattr(main, "entry_points", lambda group: [point])
    monkeypatch.setattr(sys, "argv", ["phasecollapse", "describe", *arguments])
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text("data: {path: nowhere, image_size: 16, classes: 5}\nmodel: {widths: [3, 4]}\n", encoding="utf-8")
    return str(file)


def test_the_command_prints_plain_text_in_full_when_piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    assert command(monkeypatch, config, "training.batch_size=64") == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "…" not in output
    assert "blocks.1.projection       standardize, complex P  4 ℂ, " in output
    assert " for the 32 images of a worker\n" in output
    assert output.endswith("no learned spatial filter, no learned bias before the classifier\n")


def test_the_command_names_what_it_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    assert command(monkeypatch, config, "model.nonlinearity=threshold") == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == (
        "no learned spatial filter; "
        "learned bias in 2 layers (blocks.0.operator_bias, blocks.1.operator_bias) before the classifier"
    )
    resnet = 'model={"family": "resnet", "depth": 20, "stem": "cifar", "width_multiplier": 0.1, "biases": false}'
    file = Path(config)
    file.write_text(
        file.read_text(encoding="utf-8").split("model:")[0] + resnet.replace("=", ": ", 1), encoding="utf-8"
    )
    assert command(monkeypatch, config) == 0
    output = capsys.readouterr().out
    assert "convolution 3×3" in output
    assert output.splitlines()[-1] == (
        "learned spatial filter in 19 layers (conv1 3×3, layer1.0.conv1 3×3, layer1.0.conv2 3×3 and 16 more); "
        "no learned bias before the classifier"
    )


def test_json_holds_layers_and_totals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    assert command(monkeypatch, config, "--json", "--classes", "7") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == 7
    assert sum(layer["learned"] for layer in content["layers"]) == content["totals"]["learned"]
    assert content["totals"]["kernels"] == content["totals"]["biases"] == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.widths=[]"], "setting 'model.widths' is []"),
        (["model.widths=[1,1,1,1,1,1,1,1,1,1]", "model.first_factorized_block=9"], "model.widths: block "),
        (["model.operator_gain=2"], "model.operator_gain: collapse has no gain"),
        (["data.classes=null"], "data.classes is not set"),
        (["--classes", "none"], "Invalid value for '--classes'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: str,
    overrides: Sequence[str],
    message: str,
) -> None:
    assert command(monkeypatch, config, *overrides) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_search_is_distinguished_from_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "configs/textures_search.yaml") == 2
    assert "configs/textures_search.yaml describes a search, not a run" in capsys.readouterr().err
