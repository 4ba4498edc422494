"""How pipeline.training, pipeline.metrics and pipeline.runtime are broken: steps, epochs and ranks."""

from tests.mutation.mutation import Mutation

START = "pipeline/training/finetune.py"
DATA = "pipeline/training/dataloader.py"
ENGINE = "pipeline/training/loop.py"
WORKER = "pipeline/training/trainer.py"
RESUME = "tests/faults/test_resume.py::"
TWO_RANKS = "tests/pipeline/training/test_loop.py::test_two_ranks_compute_what_one_does_and_count_each_image_once"

MUTATIONS = (
    # pipeline/training
    Mutation(
        "images of the holdout are trained on",
        DATA,
        'held_out if subset == "holdout" else ~held_out',
        'held_out if subset == "holdout" else everything >= 0',
        ("tests/pipeline/training/test_dataloader.py::test_holdout_is_left_out_of_training_when_it_is_evaluated",),
    ),
    Mutation(
        "label smoothing is dropped",
        ENGINE,
        'label_smoothing=label_smoothing, reduction="sum"',
        'reduction="sum"',
        ("tests/pipeline/training/test_loop.py",),
    ),
    Mutation(
        "each rank averages over its own part of the batch",
        ENGINE,
        "(loss * (ranks / batch.size)).backward()",
        "(loss / len(classes)).backward()",
        (TWO_RANKS,),
    ),
    Mutation(
        "ranks keep running statistics of their own",
        ENGINE,
        "dist.broadcast(value, src=0)",
        "pass",
        (TWO_RANKS,),
    ),
    Mutation(
        "weight decay acts on normalization and biases",
        "pipeline/training/optimizers.py",
        "exempt = network.no_decay_names()",
        "exempt: set[str] = set()",
        ("tests/pipeline/training/test_optimizers.py",),
    ),
    Mutation(
        "a resumed epoch begins at its first image",
        "pipeline/training/trainer.py",
        "images.epoch(epoch, state.epoch_in_progress.position)",
        "self._stream.epoch(epoch)",
        (RESUME + "test_every_image_is_once_in_each_epoch_that_led_to_the_weights",),
    ),
    Mutation(
        "a run that is asked to stop does not save",
        "pipeline/training/trainer.py",
        "if action & (StepAction.SAVE | StepAction.STOP) or",
        "if wish & StepAction.SAVE or",
        (RESUME + "test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves",),
    ),
    Mutation(
        "a full disk ends a run at once",
        "pipeline/training/checkpointer.py",
        "if last or self._failed_saves > self._settings.checkpoint.max_save_failures:",
        "if True:",
        (RESUME + "test_a_full_disk_is_survived_for_a_while_and_then_reported",),
    ),
    Mutation(
        "averaged weights are not averages",
        "pipeline/training/setup.py",
        "get_ema_multi_avg_fn(decay)",
        "get_ema_multi_avg_fn(decay / 2)",
        ("tests/project/test_recipes.py::test_the_average_follows_its_formula",),
    ),
    Mutation(
        "a worker begins where it does not see the run's folder",
        "pipeline/training/setup.py",
        "if not (run.path / paths.IDENTITY).is_file():",
        "if False:",
        ("tests/pipeline/training/test_trainer.py::test_a_node_that_does_not_see_the_runs_folder_is_named",),
    ),
    Mutation(
        "a worker trains on whatever its node holds",
        "pipeline/training/setup.py",
        "!= run.identity.data_digest:",
        "== 0:",
        ("tests/pipeline/training/test_trainer.py::test_a_node_with_another_data_set_is_named",),
    ),
    Mutation(
        "a resumed run loads the weights that it started with",
        "pipeline/training/checkpointer.py",
        "        else:\n            finetune.load(",
        "        if settings.start.checkpoint:\n            finetune.load(",
        (
            "tests/pipeline/training/test_finetune.py::test_a_fine_tuned_run_says_what_it_starts_with_and_resumes_to_the_same_bits_without_it",
        ),
    ),
    Mutation(
        "a classifier for other classes keeps the weights of the old ones",
        START,
        "same_classes = [one.id for one in its.classes] == [one.id for one in classes]",
        "same_classes = True",
        (
            "tests/pipeline/training/test_finetune.py::test_the_classifiers_linear_map_alone_is_new_where_it_cannot_fit[other-classes]",
        ),
    ),
    Mutation(
        "workers load whatever the checkpoint holds by then",
        START,
        "if hash_file(checkpoint / paths.MODEL) != expected:",
        "if False:",
        ("tests/pipeline/training/test_finetune.py::test_weights_that_change_between_launch_and_worker_are_noticed",),
    ),
    # pipeline/metrics
    Mutation(
        "a loss that is not finite goes unnoticed",
        "pipeline/metrics/nonfinite.py",
        "if values.isfinite().all():",
        "if True:",
        ("tests/pipeline/training/test_loop.py::test_training_stops_at_a_loss_that_is_not_finite",),
    ),
    Mutation(
        "means over a few steps are over all steps so far",
        "pipeline/metrics/nonfinite.py",
        "        self._sums = [0.0] * 4\n        return {",
        "        return {",
        ("tests/pipeline/training/test_loop.py::test_each_few_steps_have_their_own_means",),
    ),
    # pipeline/runtime
    Mutation(
        "a step waits for the storage of its records",
        "pipeline/training/callbacks.py",
        "            self._background.submit(self._log.flush)\n        return",
        "            self._log.flush()\n        return",
        ("tests/pipeline/training/test_trainer.py::test_storage_that_does_not_answer_delays_no_step",),
    ),
    Mutation(
        "a step waits for the storage of its position",
        "pipeline/tracking/writer.py",
        "            self._background.submit(write)\n",
        "            write()\n",
        ("tests/pipeline/training/test_trainer.py::test_storage_that_does_not_answer_delays_no_step",),
    ),
    Mutation(
        "ranks act on a wish as soon as they have it",
        "pipeline/runtime/coordination.py",
        "        return agreed\n",
        "        return agreed | self._own()\n",
        ("tests/pipeline/runtime/test_coordination.py::test_ranks_act_on_the_first_ones_wish_after_the_same_step",),
    ),
    Mutation(
        "what is imported stays subject to garbage collection",
        "pipeline/runtime/imports.py",
        "        gc.freeze()\n",
        "",
        ("tests/pipeline/runtime/test_imports.py::test_the_collector_leaves_alone_what_is_imported",),
    ),
    Mutation(
        "all workers of a machine are on one NUMA node",
        "pipeline/runtime/numa.py",
        "nodes[local_rank * len(nodes) // max(local_workers, 1)]",
        "nodes[0]",
        ("tests/pipeline/runtime/test_numa.py",),
    ),
    Mutation(
        "statistics of averaged weights are computed twice after a stop",
        "pipeline/training/trainer.py",
        "            restore_statistics()",
        "            pass",
        ("tests/faults/test_resume.py::test_a_stop_within_an_evaluation_is_saved_too_and_changes_no_bit",),
    ),
    Mutation(
        "a registered metric may be NaN",
        "pipeline/training/loop.py",
        "    check_registered(means)\n",
        "",
        ("tests/project/test_registered_code.py::test_a_metric_that_fails_is_named",),
    ),
    # pictures and reports
    Mutation(
        "the least certain mistakes come first",
        "pipeline/metrics/mistakes.py",
        "(-one[0], one[1])",
        "one",
        ("tests/pipeline/figures/test_charts.py::test_worst_mistakes_are_the_same_in_batches_of_any_size",),
    ),
    Mutation(
        "samples are those of another epoch",
        "pipeline/launch/pictures.py",
        "stream.epoch(1)",
        "stream.epoch(2)",
        ("tests/pipeline/figures/test_run_pictures.py::test_samples_are_what_the_network_was_fed_bit_for_bit",),
    ),
    Mutation(
        "a report obeys the names in it",
        "pipeline/report_page/page.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/pipeline/report_page/test_page.py::test_names_from_outside_are_shown_and_never_obeyed",),
    ),
    Mutation(
        "event files of earlier sessions stay",
        "pipeline/tracking/tensorboard.py",
        "            earlier.unlink()",
        "            pass",
        ("tests/pipeline/tracking/test_tensorboard.py::test_a_resumed_run_has_each_record_once_with_its_time",),
    ),
)
