"""Claims about searchers that learn: what Optuna gets, and that a search continues where it was interrupted.

Trials are not trained: an analytic function of the point stands for the error after each epoch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest, load_manifest
from pipeline.config.settings_io import resolve
from tuning import search_folder, searchers
from tuning.adaptive.asker import Asker
from tuning.adaptive.encoding import encoding
from tuning.adaptive.observation import Adaptive, Observation
from tuning.adaptive.optuna_searcher import POPULATION, OptunaSearcher
from tuning.config import SearchSettings
from tuning.search_folder import Record, record_of
from tuning.space.dimension import Dimension
from tuning.space.points import Point, outside

RATES = {"optimizer.learning_rate": {"log_uniform": [1e-4, 1.0]}, "optimizer.momentum": {"uniform": [0.0, 0.95]}}
Records = dict[str, Record]


@pytest.fixture
def data(textures: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.chdir(textures.parent)
    return load_manifest(textures)


def settings(storage: Path | str = "runs", flip: bool = False, **search: Any) -> SearchSettings:
    content = {
        "train": {
            "data": {"path": "textures", "image_size": 16, "flip": flip},
            "run": {"storage": str(storage)},
            "model": {"widths": [2], "classifier": "pooled"},
        },
        "search": {"name": "test", "searcher": "optuna", "scheduler": "none", "trials": 40, "space": RATES, **search},
    }
    return resolve(SearchSettings, content, "test.yaml")


def bowl(point: Mapping[str, Any]) -> float:
    """The smallest error at a learning rate of 0.03 and a momentum of 0.7."""
    rate = (math.log10(point["optimizer.learning_rate"]) - math.log10(0.03)) / 4
    return min(1.0, 0.1 + rate**2 + (point["optimizer.momentum"] - 0.7) ** 2)


def asker(search: SearchSettings, **more: Any) -> Asker:
    return Asker(search, OptunaSearcher(search), lambda candidate: None, **more)


def searched(
    one: Asker, count: int, error: Callable[[Mapping[str, Any]], float] = bowl, records: Records | None = None
) -> Records:
    """The records of a search of `count` trials, one at a time."""
    found = dict(records or {})
    while len(found) < count and (candidate := one.ask(found, dict.fromkeys(found, 1.0))) is not None:
        value = error(candidate.coordinates)
        found[candidate.name] = record_of(candidate, Record(status="completed", errors={1: value}))
    return found


def best(records: Records) -> float:
    return min(record.error or 0.0 for record in records.values())


def test_tpe_finds_better_points_than_a_draw(data: Manifest) -> None:
    better = 0
    for seed in range(3):
        learned = searched(asker(settings(seed=seed)), 40)
        drawn = searchers.choose(settings(seed=seed, searcher="random"), data).candidates
        assert len(learned) == len(drawn) == 40
        better += best(learned) < min(bowl(one.coordinates) for one in drawn)
    assert better == 3


def test_a_search_that_was_interrupted_proposes_the_same_points_as_one_that_was_not() -> None:
    whole = searched(asker(settings()), 25)
    records: Records = {}
    for count in (3, 14, 25):  # a new process each
        stored = {name: Record.model_validate_json(one.model_dump_json()) for name, one in records.items()}
        records = searched(asker(settings()), count, records=stored)
    assert list(records) == list(whole)
    assert list(searched(asker(settings(seed=1)), 2)) != list(whole)[:2]


def test_points_of_trials_that_are_running_are_not_proposed_again() -> None:
    search, records = settings(space={"depth": [1], "width": [2, 3, 4, 5]}, trials=9), {}
    one = asker(search)
    for _ in range(4):
        candidate = one.ask(records, {})
        assert candidate is not None
        records[candidate.name] = record_of(candidate, Record())
    assert sorted(records) == ["2", "3", "4", "5"]
    assert one.left(records) == 5 and one.ask(records, {}) is None, "the space has no other point"


def test_conditions_hold_for_what_is_proposed() -> None:
    space = {
        "model.skip": [True, False],
        "optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"model.skip": True}},
        "depth": {"integer": [1, 3]},
        "width": {"log_integer": [2, 16]},
        "training.batch_size": [32, 16],
    }
    search = settings(space=space, trials=30)
    records = searched(asker(search), 30, lambda point: 0.5 if point["model.skip"] else 0.5 - point["depth"] / 10)
    points = [one.coordinates for one in records.values()]
    assert len(points) == 30 and all(outside(search.search.space, point) is None for point in points)
    assert {("optimizer.momentum" in point, point["model.skip"]) for point in points} == {(True, True), (False, False)}
    late = points[15:]
    assert sum(not point["model.skip"] for point in late) > len(late) / 2, "the better half of the space is preferred"


def test_what_cannot_be_trained_is_asked_again_and_bounded(data: Manifest) -> None:
    space = {"depth": [1, 2], "width": {"integer": [1, 32]}}
    search = settings(space=space, trials=6, constraints={"max_parameters": "1k"})
    choice = searchers.choose(search, data)
    assert choice.asker is not None and choice.candidates == []
    found = searched(choice.asker, 6, lambda point: point["width"] / 100)
    assert len(found) == 6 and max(one.point["widths"][0] for one in found.values()) < 32
    none = searchers.choose(settings(space=space, constraints={"max_parameters": 1}), data).asker
    with pytest.raises(UserError, match=r"none of \d+ points can be tried: above search\.constraints\.max_parameters"):
        none.ask({}, {})  # type: ignore[union-attr]
    assert none is not None and none.ask({"7": Record(coordinates={})}, {}) is None


def test_what_every_trial_would_be_refused_for_ends_a_search(data: Manifest) -> None:
    one = searchers.choose(settings(flip=True), data).asker
    with pytest.raises(UserError, match=r"none of 50 points can be tried: data\.flip must be false"):
        one.ask({"7": Record(coordinates={})}, {})  # type: ignore[union-attr]


def known_as(search: SearchSettings, **trial: Any) -> Any:
    point = {"optimizer.learning_rate": 0.1, "optimizer.momentum": 0.5}
    return OptunaSearcher(search).as_trial(Observation(point, **trial))


@pytest.mark.parametrize(
    ("objective", "trial", "state", "values"),
    [
        ("error", {"status": "completed", "errors": {1: 0.9, 2: 0.3}}, "COMPLETE", [0.3]),
        ("error", {"status": "stopped early", "errors": {1: 0.9}}, "PRUNED", None),
        ("frontier", {"status": "completed", "errors": {1: 0.3}, "cost": math.e}, "COMPLETE", [0.3, 1.0]),
        ("frontier", {"status": "stopped early", "errors": {1: 0.9}, "cost": math.e}, "COMPLETE", [0.9, 1.0]),
        ("error", {"status": "failed", "errors": {1: 0.9}}, "PRUNED", None),
        ("frontier", {"status": "failed"}, "PRUNED", None),
        ("error", {"status": "pending", "errors": {1: 0.9}}, "RUNNING", None),
    ],
)
def test_optuna_gets_what_is_known_of_a_trial(objective: str, trial: Any, state: str, values: Any) -> None:
    known = known_as(settings(objective=objective), **trial)
    assert (known.state.name, known.values) == (state, values)
    assert bool(known.constraints) == (trial["status"] == "failed")
    if objective == "error":
        assert known.intermediate_values == trial.get("errors", {})


def test_trials_that_were_stopped_or_failed_turn_the_search_away() -> None:
    space = {"optimizer.momentum": {"uniform": [0.0, 0.9]}}
    for status in ("stopped early", "failed"):
        search = settings(space=space)
        bad = [Observation({"optimizer.momentum": 0.02 * k}, status, {1: 0.9}) for k in range(20)]  # type: ignore[arg-type]
        good = [Observation({"optimizer.momentum": 0.6 + 0.02 * k}, "completed", {1: 0.9}) for k in range(5)]
        points = [OptunaSearcher(search).propose([*bad, *good], attempt) for attempt in range(10)]
        assert sum(point["optimizer.momentum"] > 0.45 for point in points) >= 8, (status, points)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_frontier_is_looked_for_along_its_whole_length(sampler: str) -> None:
    space = {"depth": [1], "width": {"log_integer": [1, 512]}, "optimizer.momentum": {"uniform": [0.0, 0.95]}}
    search = settings(space=space, scheduler="pareto_halving", sampler=sampler, trials=80)
    assert search.search.seeks_frontier and not settings(scheduler="asha").search.seeks_frontier
    one, records, costs = asker(search), {}, {}
    for _ in range(80):
        candidate = one.ask(records, costs)
        assert candidate is not None
        width, momentum = candidate.coordinates["width"], candidate.coordinates["optimizer.momentum"]
        error = 0.8 / width**0.3 + abs(momentum - 0.6) / 2  # one momentum is best for all widths
        records[candidate.name] = record_of(candidate, Record(status="completed", errors={1: error}))
        costs[candidate.name] = width**2
    late = [one.coordinates for one in list(records.values())[-30:]]
    distance = [abs(point["optimizer.momentum"] - 0.6) for point in late]
    assert sorted(distance)[15] < 0.12, "a draw has a median of about 0.24"
    widths = [point["width"] for point in late]
    assert min(widths) < 8 and max(widths) > 64, "both ends are tried"


def test_generations_of_nsga2_follow_from_the_order_of_the_trials() -> None:
    search = settings(sampler="nsga2", objective="frontier", trials=100)
    whole = searched(asker(search), 2 * POPULATION + 5)
    stored = dict(list(whole.items())[: POPULATION + 3])
    assert list(searched(asker(search), 2 * POPULATION + 5, records=stored)) == list(whole)


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        ([8, 2, 4], [2, 4, 8]),
        (["a", "b", "a"], ["a", "b"]),
        ([True, 1, None], [True, 1, None]),
        ([[8, 16], [8, 8]], [[8, 16], [8, 8]]),
        ({"uniform": [0, 1], "points": 3}, [0.0, 0.5, 1.0]),
    ],
)
def test_values_of_a_list_are_indices_and_come_back(dimension: Any, values: list[Any]) -> None:
    one = encoding(Dimension.model_validate(dimension))
    assert list(one.values or ()) == values and [type(v) for v in one.values or ()] == [type(v) for v in values]
    assert [one.encode(value) for value in values] == list(range(len(values)))


class Fixed(Adaptive):
    """Proposes one point."""

    def __init__(self, point: Any) -> None:
        self.point = point

    def propose(self, known: Any, attempt: int) -> Point:
        found: Point = self.point
        return found


@pytest.mark.parametrize("point", [None, {}, {"optimizer.learning_rate": 2.0, "optimizer.momentum": 0.1}])
def test_what_a_searcher_from_elsewhere_proposes_is_checked(point: Any) -> None:
    with pytest.raises(UserError, match=r"search\.searcher: optuna proposes .*point"):
        Asker(settings(), Fixed(point), lambda candidate: None).ask({}, {})


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"sampler": "cmaes"}, r"search\.sampler.*tpe.*nsga2"),
        ({"objective": "speed"}, r"search\.objective"),
        ({"space": {"depth": [], "width": [4]}}, r"search\.space\.depth.*at least 1"),
        ({"space": {}}, "space must be set where searcher is optuna"),
        ({"trials": None}, "trials must be set where searcher is optuna"),
        ({"searcher": "random", "warm_start": ["old"]}, "warm_start must stay unset where searcher is random"),
        ({"initial_points": [{"optimizer.momentum": 0.1}]}, r"optimizer\.learning_rate is missing"),
        ({"initial_points": [{"optimizer": {"momentum": 0.1, "learning_rate": 3}}]}, r"learning_rate is never 3"),
        ({"initial_points": [{"depth": 3}]}, "depth is no dimension of it; correct it, or move it to candidates"),
        ({"trials": 1, "initial_points": [{"optimizer": {"momentum": m, "learning_rate": 0.1}} for m in (0.1, 0.2)]},
         "trials must be at least"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(search: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        settings(**search)


@pytest.mark.parametrize("searcher", ["grid", "random", "optuna"])
def test_initial_points_come_first_and_count(data: Manifest, searcher: str) -> None:
    first = {"depth": 2, "width": 3}
    search = settings(
        searcher=searcher,
        space={"depth": [1, 2], "width": {"integer": [2, 4]}},
        trials=3,
        initial_points=[first],
        candidates=[{"widths": [7]}],
    )
    choice = searchers.choose(search, data)
    records = {one.name: record_of(one, Record()) for one in choice.candidates}
    while choice.asker and (one := choice.asker.ask(records, {})):
        records[one.name] = record_of(one, Record())
    names = list(records)
    assert names[0] == "3-3" and "7" in names and len(names) == 3 + 1


def earlier(storage: Path, data: Manifest, count: int = 6, **search: Any) -> SearchSettings:
    """A search that has ended."""
    old = settings(storage, name="old", **search)
    with search_folder.claim(old, data) as folder:
        folder.begin()
        for name, record in searched(asker(old), count).items():
            folder.update(name, record)
    return old


def test_trials_of_an_earlier_search_that_lie_in_the_space_are_known(tmp_path: Path, data: Manifest) -> None:
    earlier(tmp_path, data, 30)
    narrow = {**RATES, "optimizer.momentum": {"uniform": [0.4, 0.95]}, "model.skip": [True, False]}
    for name in ("old", str(tmp_path / "old")):
        new = settings(tmp_path, space=narrow, warm_start=[name])
        one = searchers.choose(new, data).asker
        assert one is not None and 5 < len(one.warm) < 30
        assert all(point.point["model.skip"] == new.model.skip for point in one.warm)
    cold, warm = (searched(each, 5, bowl) for each in (asker(new), one))
    assert sum(r.error or 0 for r in warm.values()) < sum(r.error or 0 for r in cold.values())
    assert one.left({}) == 40, "they are no trials of this search"


def test_a_setting_that_may_be_unset_was_unset_in_an_earlier_search(tmp_path: Path, data: Manifest) -> None:
    old = earlier(tmp_path, data, 6)
    with search_folder.claim(old, data) as folder:
        folder.update("without a point", Record(status="failed"))
    space = {**RATES, "training.micro_batch_size": [None, 8]}
    one = searchers.choose(settings(tmp_path, space=space, warm_start=["old"]), data).asker
    assert one is not None and [each.point["training.micro_batch_size"] for each in one.warm] == [None] * 6


def test_a_warm_start_that_cannot_be_used_is_refused(tmp_path: Path, data: Manifest) -> None:
    earlier(tmp_path, data)
    other = resolve(
        SearchSettings,
        {
            **settings(tmp_path, warm_start=["old"]).model_dump(mode="json", exclude_unset=True),
            "train": {**settings(tmp_path).train.model_dump(mode="json"), "training": {"epochs": 3}},
        },
        "test.yaml",
    )
    for search, says in [
        (settings(tmp_path, warm_start=["none"]), rf"search\.warm_start: {re.escape(str(tmp_path))}/none is no folder"),
        (settings(tmp_path, warm_start=["test"]), "is this search"),
        (settings(tmp_path, warm_start=["old"], error="top5"), "has search.error top1, not top5"),
        (settings(tmp_path, warm_start=["old"], space={"depth": [1], "width": [2]}), "depth is missing"),
        (other, r"no trial of old can be taken over .*training\.epochs: \d+ → 3"),
    ]:
        with pytest.raises(UserError, match=says):
            searchers.choose(search, data)
    with pytest.raises(UserError, match="has another data set"):
        searchers.choose(settings(tmp_path, warm_start=["old"]), data.model_copy(update={"splits": {}}))
