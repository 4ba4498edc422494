from typing import Any

JOB_SIZE: int
JOB_LAYOUT: tuple[tuple[str, int, int], ...]

def fill(jobs: Any, out: Any, height: int, width: int, reduce: bool) -> list[tuple[int, int, str]]: ...
def check(jobs: Any) -> list[tuple[int, int, str]]: ...
