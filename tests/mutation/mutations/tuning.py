"""How tuning is broken: which trials there are, and which of them count."""

from tests.mutation.mutation import Mutation

MUTATIONS = (
    Mutation(
        "runs of trials that were killed stay open in MLflow",
        "tuning/tracking.py",
        "if target.status != how or stopped:",
        "if False:",
        ("tests/tuning/test_search_folder.py::test_trials_that_killed_processes_left_running_are_ended",),
    ),
    Mutation(
        "a search selects on the validation images",
        "tuning/space.py",
        'content["data"]["evaluate_on"] = "holdout"',
        'content["data"]["evaluate_on"] = "validation"',
        ("tests/tuning/test_space.py",),
    ),
    Mutation(
        "trials that were stopped early count as results",
        "tuning/frontier.py",
        'for row in rows if row.status == "completed" and row.error is not None\n    ]\n    flags',
        "for row in rows if row.error is not None\n    ]\n    flags",
        ("tests/tuning/test_frontier.py::test_only_completed_trials_are_on_the_frontier",),
    ),
)
