"""ray_cluster.yaml: accepted by Ray, closed to strangers, and never more fragile than it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.helpers.checkout import ROOT

TEXT = (ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")
CONTENT: dict[str, Any] = yaml.safe_load(TEXT)


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The file as the launcher uses it, with Ray's defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(TEXT))
    validate_config(config)
    return config


def ray_starts(config: dict[str, Any]) -> dict[str, str]:
    def the_start(commands: list[str]) -> str:
        (command,) = [one for one in commands if "ray start" in one]
        return command

    return {role: the_start(config[f"{role}_start_ray_commands"]) for role in ("head", "worker")}


def test_ray_accepts_the_file_and_loses_none_of_its_limits(prepared: dict[str, Any]) -> None:
    assert set(prepared["available_node_types"]) == set(CONTENT["available_node_types"])
    assert "min_workers" not in CONTENT, "Ray drops a global min_workers silently: each node type has its own"
    for name, node_type in CONTENT["available_node_types"].items():
        for limit in ("min_workers", "max_workers"):
            assert prepared["available_node_types"][name][limit] == node_type[limit]


def test_nothing_listens_on_every_address(prepared: dict[str, Any]) -> None:
    assert "0.0.0.0" not in yaml.safe_dump(prepared)
    head = ray_starts(prepared)["head"]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--ray-client-server-port" not in head


def test_every_node_asks_for_the_token_and_has_it(prepared: dict[str, Any]) -> None:
    for command in ray_starts(prepared).values():
        assert re.search(r"\bRAY_AUTH_MODE=token ray start\b", command)
    assert prepared["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_runs_because_stopped_trials_are_freed_through_it(prepared: dict[str, Any]) -> None:
    assert "--include-dashboard=true" in ray_starts(prepared)["head"]


def test_the_head_is_on_demand_and_takes_no_training() -> None:
    head = CONTENT["available_node_types"][CONTENT["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0


def test_spot_nodes_have_to_be_asked_for() -> None:
    spot = [one for one in CONTENT["available_node_types"].values() if "InstanceMarketOptions" in one["node_config"]]
    assert [(one["min_workers"], one["max_workers"]) for one in spot] == [(0, 0)]


def test_idle_nodes_end(prepared: dict[str, Any]) -> None:
    assert 0 < prepared["idle_timeout_minutes"] <= 15
    assert all(one["min_workers"] == 0 for one in prepared["available_node_types"].values())
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_ray_is_the_tested_version_everywhere(prepared: dict[str, Any]) -> None:
    (version,) = re.findall(
        r"^ray==([\d.]+)$", (ROOT / "requirements" / "constraints-3.11.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    commands = "\n".join(
        prepared["setup_commands"] + prepared["head_setup_commands"] + prepared["worker_setup_commands"]
    )
    assert f"ray[default,train,tune]=={version}" in commands
    assert prepared["docker"]["image"] == f"rayproject/ray:{version}-py311-gpu"
    assert ".whl" not in commands
