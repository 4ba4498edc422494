"""Claims about what ranks agree on after a step."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.runtime.coordination import RankCoordinator, StepAction
from tests.helpers.ranks import in_ranks


def test_one_process_gets_its_wishes_at_once() -> None:
    asked = iter([StepAction.NOTHING, StepAction.STOP])
    control = RankCoordinator(lambda: next(asked), save_seconds=3600, preemption_poll_seconds=0)
    assert control.after_step() == StepAction.POLL
    assert control.after_step() == StepAction.POLL | StepAction.STOP


def test_time_to_save_starts_again_after_a_save() -> None:
    control = RankCoordinator(lambda: StepAction.NOTHING, save_seconds=0.2)
    time.sleep(0.25)
    control.saved()
    assert control.after_step() == StepAction.NOTHING
    time.sleep(0.25)
    assert control.after_step() == StepAction.SAVE
    assert control.after_step() == StepAction.NOTHING
    assert RankCoordinator(lambda: StepAction.NOTHING).after_step() == StepAction.NOTHING


def twenty_steps(rank: int) -> list[int]:
    """Steps after which there was something to do. Ranks do not take equally long; only the first one has a wish."""
    steps = 0
    control = RankCoordinator(lambda: StepAction.STOP if rank == 1 or steps == 10 else StepAction.NOTHING)
    seen = []
    for steps in range(20):
        time.sleep(0.001 * rank)
        if control.after_step():
            seen.append(steps)
    control.close()
    return seen


def test_ranks_act_on_the_first_ones_wish_after_the_same_step(tmp_path: Path) -> None:
    assert in_ranks(twenty_steps, tmp_path) == [[11], [11]]
