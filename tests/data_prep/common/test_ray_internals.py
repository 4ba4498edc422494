"""Claims about private parts of Ray: they are as `data_prep.common.ray_internals` assumes, and used nowhere else."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import ray
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.train.torch import TorchTrainer
from ray.train.v2.api import data_parallel_trainer

from data_prep.common import ray_internals
from tests.helpers.checkout import ROOT


def test_the_installed_ray_is_the_version_that_was_read() -> None:
    assert ray.__version__.startswith(f"{ray_internals.RAY_VERSION}.")
    pinned = re.search(r'"ray\[default,train,tune\]>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned and pinned[1] == ray_internals.RAY_VERSION


def test_the_log_monitor_is_started_by_a_method_of_the_node_without_arguments() -> None:
    assert list(inspect.signature(Node.start_log_monitor).parameters) == ["self"]
    assert "self.start_log_monitor()" in inspect.getsource(Node)
    before = Node.start_log_monitor
    with ray_internals.without_log_monitor():
        assert Node.start_log_monitor is not before
    assert Node.start_log_monitor is before


def test_authentication_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(Config.initialize) and callable(AuthenticationTokenLoader.instance().reset_cache)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    ray_internals.reread_authentication()
    assert AuthenticationTokenLoader.instance().has_token()
    monkeypatch.undo()
    ray_internals.reread_authentication()


def test_the_trainer_has_the_methods_that_are_overridden_and_the_callbacks_that_are_left_out() -> None:
    assert list(inspect.signature(TorchTrainer._create_default_callbacks).parameters) == ["self"]
    assert list(inspect.signature(TorchTrainer._register_sigint_handler).parameters) == ["self", "controller"]
    source = inspect.getsource(TorchTrainer._create_default_callbacks)
    for name in (*ray_internals.UNUSED_CALLBACKS, *ray_internals.CLEANUP_CALLBACKS):
        assert hasattr(data_parallel_trainer, name)
        assert f"{name}(" in source


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own data sets
def test_callbacks_are_left_out_by_name_and_an_unstarted_trainer_is_aborted_without_effect() -> None:
    whole, _ = ray_internals.build_torch_trainer(print, left_out=())
    less, abort = ray_internals.build_torch_trainer(print, left_out=ray_internals.UNUSED_CALLBACKS)
    kept = {type(callback).__name__ for callback in less._create_default_callbacks()}
    everything = {type(callback).__name__ for callback in whole._create_default_callbacks()}
    assert everything - kept == set(ray_internals.UNUSED_CALLBACKS)
    abort()


def test_the_coordinator_is_an_actor_of_this_name() -> None:
    source = inspect.getsource(default_autoscaling_coordinator)
    assert f'name="{ray_internals.COORDINATOR}"' in source and f'namespace="{ray_internals.COORDINATOR}"' in source


@pytest.mark.slow
def test_a_cluster_has_the_port_resource_titles_and_ids_that_are_assumed() -> None:
    """`connect` gives its processes the address with that port."""
    program = """
import os, psutil, ray
from ray.util.placement_group import placement_group
from data_prep.common import ray_internals
from data_prep.common.ray_cluster import connect

def title():
    return psutil.Process().cmdline()[0]

with connect(None):
    print(ray.get(ray.remote(title).remote()) == ray_internals.task_title(title))
    titles = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    print(any(one.startswith(ray_internals.IDLE_TITLE) for one in titles))
    group = placement_group([{"CPU": 1}]).id.hex()
    print(ray_internals.is_of_job(group, ray.get_runtime_context().get_job_id()))
    [head] = ray.nodes()
    address = ray.get(ray.remote(num_cpus=0, resources=ray_internals.HEAD_NODE)(os.getenv).remote("RAY_ADDRESS"))
    print(address.split(":")[1] == ray.get_runtime_context().gcs_address.split(":")[1])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_no_other_module_touches_private_parts_of_ray() -> None:
    private = re.compile(r"\bray\.[\w.]*_(?:private|raylet|internal)|from ray\.[\w.]*_(?:private|internal)|from ray\._")
    overridden = re.compile(r"_create_default_callbacks|_register_sigint_handler|_initialize_and_run_controller")
    files = [path for package in ("data_prep", "pipeline", "tuning") for path in (ROOT / package).rglob("*.py")]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    quiet = "|".join(ray_internals.QUIET)
    names = re.compile(rf"__internal_head__|RAY_GCS_SERVER_PORT|pickled_error_file|{quiet}")
    using = {name for name, text in texts.items() if any(one.search(text) for one in (private, overridden, names))}
    assert using == {"data_prep/common/ray_internals.py"}
