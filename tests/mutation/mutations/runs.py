"""How runs are broken: their settings, folders, tracking, launch and inference."""

from tests.mutation.mutation import Mutation

CLAIMED_FOLDER = "pipeline/runs/claimed_folder.py"
RUN_FOLDER = "pipeline/runs/run_folder.py"
CLUSTER = "tests/faults/test_cluster.py::"
RESUME = "tests/faults/test_resume.py::"

MUTATIONS = (
    # pipeline/config
    Mutation(
        "without a cluster one core computes",
        "pipeline/config/schema.py",
        "cores()",
        "1",
        (
            "tests/pipeline/config/test_settings_io.py::test_a_worker_has_one_thread_and_training_without_a_cluster_all_there_are",
        ),
    ),
    Mutation(
        "an unknown setting is accepted",
        "pipeline/config/section.py",
        'extra="forbid"',
        'extra="ignore"',
        (
            "tests/pipeline/config/test_settings_io.py::test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed",
        ),
    ),
    # pipeline/config, what a user reads
    Mutation(
        "a wrong value is refused in the words of a library",
        "pipeline/config/plain_errors.py",
        '    "float_parsing": "must be a number",\n',
        "",
        ("tests/pipeline/config/test_settings_io.py::test_no_setting_is_refused_in_the_words_of_a_library",),
    ),
    Mutation(
        "a composed name is longer than a folder's may be",
        "pipeline/runs/paths.py",
        "    if len(name) <= LONGEST_NAME:",
        "    if True:",
        ("tests/tuning/test_space.py::test_long_names_are_shortened_and_stay_apart",),
    ),
    # pipeline/cli and pipeline/inference
    Mutation(
        "a server on this machine is reached through a proxy",
        "pipeline/cli/proxies.py",
        'LOOPBACK = ("localhost", "127.0.0.1", "::1")',
        'LOOPBACK = ("localhost",)',
        ("tests/pipeline/cli/test_proxies.py::test_this_machine_is_reached_directly_and_all_else_as_before",),
    ),
    Mutation(
        "an exported file cannot be written, which is found after the work",
        "pipeline/inference/export.py",
        "    _check_output(path, replace)\n",
        "",
        ("tests/pipeline/inference/test_export.py::test_what_cannot_be_written_or_read_is_refused_in_a_sentence",),
    ),
    Mutation(
        "a full disk is blamed on the tracking store",
        "pipeline/tracking/mlflow_store/errors.py",
        "    if database and is_disk_full(error):",
        "    if False:",
        ("tests/pipeline/tracking/mlflow_store/test_run.py::test_a_disk_that_is_full_is_named_and_not_the_setting",),
    ),
    Mutation(
        "a database that cannot be opened is tried for minutes",
        "pipeline/tracking/mlflow_store/store.py",
        '        store.database.open("rb").close()',
        "        pass",
        (
            "tests/pipeline/tracking/mlflow_store/test_run.py::test_a_database_that_cannot_be_used_is_named_with_its_fault[folder]",
        ),
    ),
    # pipeline/runs
    Mutation(
        "momentum is lost when a run resumes",
        "pipeline/runs/train_state.py",
        '        training.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        ("tests/pipeline/runs/test_train_state.py::test_a_restored_training_continues_to_the_same_bits",),
    ),
    Mutation(
        "a checkpoint that was damaged is used",
        "pipeline/runs/checkpoint_store.py",
        "            if hash_file(checkpoint / name) != expected:",
        "            if False:",
        (RESUME + "test_a_damaged_checkpoint_costs_the_steps_since_the_one_before",),
    ),
    Mutation(
        "a run's lock is ignored",
        CLAIMED_FOLDER,
        "        file.acquire(poll_interval=PROBE_SECONDS / 4)\n",
        "",
        (
            "tests/pipeline/runs/test_run_folder.py::test_a_second_process_is_refused_until_the_first_is_gone_however_it_went",
        ),
    ),
    Mutation(
        "a run resumes with changed settings",
        RUN_FOLDER,
        "    if changes:\n",
        "    if False:\n",
        ("tests/pipeline/runs/test_run_folder.py::test_changed_settings_are_refused_with_the_difference",),
    ),
    Mutation(
        "a run that is refused leaves its folder behind",
        CLAIMED_FOLDER,
        "        if not (path / identity).exists():\n",
        "        if False:\n",
        ("tests/pipeline/runs/test_run_folder.py::test_a_run_that_did_not_begin_leaves_nothing_and_fixes_no_setting",),
    ),
    Mutation(
        "steps that are taken again are recorded again",
        "pipeline/runs/history.py",
        " and step not in self._recorded",
        "",
        ("tests/pipeline/runs/test_history.py",),
    ),
    Mutation(
        "what a killed search left of search.yaml is foreign",
        CLAIMED_FOLDER,
        "*(file.name for file in partials_in(path, identity))",
        "",
        ("tests/tuning/test_search_folder.py", "tests/pipeline/runs/test_run_folder.py"),
    ),
    # pipeline/tracking
    Mutation(
        "a run is finished in MLflow before it has everything",
        "pipeline/tracking/run_delivery.py",
        "        for name, points in journals.items():\n",
        "        self.tracker.set_status(self.target.status)\n        for name, points in journals.items():\n",
        ("tests/pipeline/tracking/test_run_delivery.py::test_a_trial_is_a_child_of_its_search",),
    ),
    Mutation(
        "an address of the environment is blamed on the settings",
        "pipeline/tracking/mlflow_store/store.py",
        "SETTING if addresses.is_set(tracking) else VARIABLE",
        "SETTING",
        ("tests/pipeline/cli/test_uri.py::test_an_address_in_the_environment_is_named_by_its_variable",),
    ),
    Mutation(
        "artifacts of a database without a server lie in the current folder",
        "pipeline/tracking/mlflow_store/store.py",
        "self.storage if self.serverless else None",
        "None",
        (
            "tests/pipeline/tracking/mlflow_store/test_postgresql.py::test_artifacts_of_a_database_without_a_server_lie_beside_the_runs",
        ),
    ),
    Mutation(
        "errors show the passwords of addresses",
        "data_prep/common/errors.py",
        "super().__init__(redact(sentence))",
        "super().__init__(sentence)",
        ("tests/data_prep/common/test_storage_addresses.py::test_wrong_overrides_are_named_without_their_secrets",),
    ),
    Mutation(
        "records that were not acknowledged are left out",
        "pipeline/tracking/run_delivery.py",
        "            self.on_progress(0)\n            self.tracker.log_points(points[start:end])\n",
        "            self.tracker.log_points(points[start:end]) if end < len(points) else None\n",
        ("tests/pipeline/tracking/test_run_delivery.py",),
    ),
    Mutation(
        "the main thread reads what MLflow's server says",
        "pipeline/tracking/mlflow_store/pages/server.py",
        "        while self.process.poll() is None:\n            time.sleep(POLL_SECONDS)\n",
        "        self._read()\n",
        ("tests/pipeline/tracking/mlflow_store/pages/test_server.py::test_ctrl_c_is_heard_while_a_server_talks",),
    ),
    Mutation(
        "an assistant's panel opens by itself in MLflow's pages",
        "pipeline/tracking/mlflow_store/pages/app.py",
        "body = body.replace(START, START + script(), 1)",
        "body = body.replace(START, START, 1)",
        ("tests/pipeline/tracking/mlflow_store/pages/test_app.py::test_the_page_makes_the_first_choices",),
    ),
    # pipeline/launch
    Mutation(
        "the command of a trial is that of Ray's worker",
        "pipeline/launch/tracked_run.py",
        "noted = ledger.read_target(search) if search else None",
        "noted = None",
        ("tests/pipeline/launch/test_tracked_run.py::test_a_trial_has_the_command_of_its_search",),
    ),
    Mutation(
        "a finished run is not recognized",
        "pipeline/launch/launcher.py",
        "finished_before = folder.finished()",
        "finished_before = False",
        ("tests/integration/test_training.py::test_a_finished_run_says_so_and_changes_nothing",),
    ),
    Mutation(
        "what was fetched is not kept for a resumed run",
        "pipeline/launch/initial_weights.py",
        "elif folder and _source_of(folder) == source:",
        "elif False:",
        ("tests/pipeline/inference/test_served_model.py::test_a_run_starts_with_a_registered_model_and_keeps_it",),
    ),
    Mutation(
        "an interrupted model is not completed, but logged again",
        "pipeline/tracking/mlflow_store/models.py",
        "found[0] if found else _create(",
        "_create(",
        (
            "tests/pipeline/inference/test_served_model.py::test_what_is_logged_is_found_again_and_what_is_missing_is_logged",
        ),
    ),
    Mutation(
        "a model is registered again",
        "pipeline/tracking/mlflow_store/registry.py",
        "if one.tags.get(MODEL_TAG) == model.model_id",
        "if False",
        (
            "tests/pipeline/inference/test_served_model.py::test_a_model_is_registered_once_and_found_by_each_of_its_names",
        ),
    ),
    Mutation(
        "the models of a run are not tracked",
        "pipeline/launch/tracked_run.py",
        "models=complete",
        "models=False",
        ("tests/integration/test_training.py::test_the_tracked_run_holds_all_that_the_run_was",),
    ),
    Mutation(
        "idle actors of Ray Train run beside a training",
        "data_prep/common/ray_internals.py",
        "if type(callback).__name__ not in left_out",
        "if True",
        ("tests/integration/test_training.py::test_a_second_start_is_refused_and_ctrl_c_ends_run_and_cluster",),
    ),
    Mutation(
        "what a dead controller had reserved stays reserved",
        "pipeline/launch/ray_train.py",
        "                ray_cleanup.free_reservations()\n",
        "                pass\n",
        (CLUSTER + "test_four_workers_one_of_which_and_whose_controller_are_killed_come_to_the_same_bits",),
    ),
    # pipeline/inference
    Mutation(
        "labels of a part of the classes are not translated",
        "pipeline/inference/evaluation.py",
        "labels=labels[batch.labels]",
        "labels=batch.labels",
        ("tests/pipeline/inference/test_evaluation.py::test_classes_are_found_by_their_ids",),
    ),
    Mutation(
        "an exported file is not compared with the network",
        "pipeline/inference/export.py",
        "if not difference <= TOLERANCE",
        "if difference < -TOLERANCE",
        ("tests/pipeline/inference/test_export.py::test_a_file_that_computes_something_else_is_not_kept",),
    ),
    # what a power failure leaves
    Mutation(
        "the files of a checkpoint are renamed before they are on disk",
        "data_prep/common/files.py",
        "        for file in sorted(partial.iterdir()):\n            _sync(file)\n",
        "",
        (
            "tests/pipeline/runs/test_checkpoint_store.py::test_a_checkpoint_is_on_disk_before_it_has_its_name_and_before_older_ones_go",
        ),
    ),
    Mutation(
        "a file is renamed before it is on disk",
        "data_prep/common/files.py",
        "    else:\n        _sync(partial)\n",
        "",
        ("tests/pipeline/runs/test_history.py::test_records_of_epochs_are_on_disk_before_they_replace_older_ones",),
    ),
    # settings and packages
    Mutation(
        "the batch size may change when a run is resumed",
        "pipeline/config/schema.py",
        "    batch_size: Positive = 128\n",
        "    batch_size: Annotated[Positive, MAY_CHANGE] = 128\n",
        ("tests/pipeline/runs/test_run_folder.py::test_these_settings_and_no_others_may_change_when_a_run_is_resumed",),
    ),
    Mutation(
        "a package of the user's is taken for ours",
        "data_prep/common/distribution.py",
        "place.samefile(ours)",
        "place.name == ours.name",
        ("tests/data_prep/common/test_distribution.py::test_the_command_names_what_hides_a_package",),
    ),
    Mutation(
        "Ray's workers are not asked which packages they import",
        "data_prep/common/parallel.py",
        "    check_packages()\n",
        "",
        ("tests/data_prep/common/test_distribution.py::test_a_ray_worker_says_what_hides_a_package",),
    ),
    Mutation(
        "evaluation computes with TensorFloat-32",
        "pipeline/inference/evaluation.py",
        "    disable_tf32()\n",
        "",
        ("tests/pipeline/runtime/test_precision.py",),
    ),
    # what is stored, and what is damaged
    Mutation(
        "weights whose bytes have changed are used",
        "pipeline/runs/trained_model.py",
        "            return _undamaged(folder)",
        "            return folder",
        (
            "tests/pipeline/runs/test_trained_model.py::test_a_checkpoint_that_is_not_what_was_written_is_refused_and_a_whole_one_named",
        ),
    ),
    Mutation(
        "settings hold passwords",
        "pipeline/config/section.py",
        "redact(text) != text",
        "False",
        (
            "tests/data_prep/common/test_storage_addresses.py::test_settings_with_secrets_are_refused_without_showing_them",
        ),
    ),
    Mutation(
        "a damaged line of steps hides the others",
        "pipeline/runs/journal.py",
        "                with suppress(ValueError):\n",
        "                if True:\n",
        ("tests/pipeline/runs/test_history.py::test_a_damaged_line_costs_no_other",),
    ),
    Mutation(
        "a copy that is later than all local checkpoints is removed",
        "pipeline/runs/remote_copy.py",
        "(kept and name < kept[-1].name)",
        "True",
        ("tests/pipeline/runs/test_remote_copy.py::test_no_copy_that_is_later_than_all_checkpoints_is_removed",),
    ),
)
