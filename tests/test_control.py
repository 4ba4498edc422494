"""Claims about what ranks agree on after a step."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.control import Control, Wish


def test_one_process_gets_its_wishes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Control, "ASK_SECONDS", 0.0)
    asked = iter([False, True])
    control = Control(lambda: next(asked), save_seconds=3600, look_seconds=0)
    assert control.after_step() == Wish.LOOK
    assert control.after_step() == Wish.LOOK | Wish.STOP


def test_time_to_save_begins_anew_after_a_save() -> None:
    control = Control(lambda: False, save_seconds=0.2)
    time.sleep(0.25)
    control.saved()
    assert control.after_step() == Wish.NOTHING
    time.sleep(0.25)
    assert control.after_step() == Wish.SAVE
    assert control.after_step() == Wish.NOTHING
    assert Control(lambda: False).after_step() == Wish.NOTHING


def in_rank(rank: int, folder: Path, queue: multiprocessing.Queue) -> None:
    """Twenty steps, of which the ranks do not take equally long; only the first rank has a wish."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    Control.ASK_SECONDS = 0.0
    steps = 0
    control = Control(lambda: rank == 1 or steps == 10)
    seen = []
    for steps in range(20):
        time.sleep(0.001 * rank)
        if control.after_step():
            seen.append(steps)
    control.close()
    queue.put((rank, seen))
    queue.close()
    queue.join_thread()
    dist.destroy_process_group()


def test_ranks_act_on_the_first_ones_wish_after_the_same_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=in_rank, args=(rank, tmp_path, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    seen = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert seen == {0: [11], 1: [11]}
