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
        "tuning/space/candidate.py",
        'content["data"]["evaluate_on"] = "holdout"',
        'content["data"]["evaluate_on"] = "validation"',
        ("tests/tuning/test_space.py",),
    ),
    Mutation(
        "trials that were stopped early count as results",
        "tuning/results/frontier.py",
        'for row in rows if row.status == "completed" and row.error is not None\n    ]\n    flags',
        "for row in rows if row.error is not None\n    ]\n    flags",
        ("tests/tuning/test_frontier.py::test_only_completed_trials_are_on_the_frontier",),
    ),
    Mutation(
        "networks are ranked by error alone",
        "tuning/pareto_halving.py",
        "float(result[COST])",
        "0.0",
        ("tests/tuning/test_pareto_halving.py::test_the_cheapest_network_survives_where_halving_by_error_stops_it",),
    ),
    Mutation(
        "networks above a budget are tried",
        "tuning/space/constraints.py",
        "if limit is not None and value > limit:",
        "if False:",
        ("tests/tuning/test_space.py::test_networks_above_a_budget_are_left_out_and_counted",),
    ),
    Mutation(
        "a trial whose process was lost is not tried again",
        "tuning/trials/recorder.py",
        "if failure.passes and",
        "if False and",
        (
            "tests/integration/test_trials_in_process.py"
            "::test_a_killed_trial_is_tried_again_after_the_others_and_ends_with_the_same_bits",
        ),
    ),
    Mutation(
        "a search that is enlarged forgets the trials that have ended",
        "tuning/search_folder.py",
        'if records[one.name].status != "pending" or (_has_begun',
        "if (_has_begun",
        ("tests/tuning/test_search_folder.py::test_a_search_may_be_enlarged_and_keeps_the_trials_that_have_ended",),
    ),
    Mutation(
        "Optuna learns of trials that were stopped early as of complete ones",
        "tuning/adaptive/optuna_searcher.py",
        '(one.status == "stopped early" and frontier)',
        'one.status == "stopped early"',
        ("tests/tuning/test_adaptive.py::test_optuna_gets_what_is_known_of_a_trial",),
    ),
    Mutation(
        "the seed of a search does not decide what Optuna proposes",
        "tuning/adaptive/optuna_searcher.py",
        'f"{self._search.seed}/{len(known)}/{attempt}"',
        'f"{len(known)}/{attempt}"',
        (
            "tests/tuning/test_adaptive.py"
            "::test_a_search_that_was_interrupted_proposes_the_same_points_as_one_that_was_not",
        ),
    ),
    Mutation(
        "trials of a search with other settings are known",
        "tuning/adaptive/warm_start.py",
        'return (None, changes[0]) if changes else (point, "")',
        'return point, ""',
        ("tests/tuning/test_adaptive.py::test_a_warm_start_that_cannot_be_used_is_refused",),
    ),
)
