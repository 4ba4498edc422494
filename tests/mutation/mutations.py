"""The ways in which `python -m tests.mutation` breaks the code, each with tests of which at least one must fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One way to break the code."""

    what: str
    """What goes wrong, in words."""
    file: str
    """Relative to the checkout."""
    old: str
    """Text that occurs in `file` exactly once."""
    new: str
    tests: tuple[str, ...]
    """Test files or pytest node ids."""

    def occurrences(self, root: Path) -> int:
        """How often `old` stands in `file` under `root`; 0 if there is no such file."""
        path = root / self.file
        return path.read_text(encoding="utf-8").count(self.old) if path.exists() else 0


WAVELETS, TRANSFORM, OPERATORS = (
    f"pipeline/models/{name}.py" for name in ("wavelets", "wavelet_transform", "nonlinearities")
)
PROJECTION, STATISTICS, SCATTERING = (
    f"pipeline/models/{name}.py" for name in ("projection", "batch_stats", "scattering")
)
INSPECTION = "pipeline/analysis/layer_costs.py"
START = "pipeline/training/finetune.py"
DATA, ENGINE, RUN_FOLDER = "pipeline/training/dataloader.py", "pipeline/training/loop.py", "pipeline/runs/run_folder.py"
CONVOLVED = "tests/pipeline/models/test_wavelet_transform.py::test_each_filter_is_convolved_with_the_reflected_signal"
DERIVATIVES = "tests/pipeline/models/test_projection.py::test_derivatives_are_those_of_the_formula"
ORACLE = "tests/pipeline/models/test_scattering.py::test_network_and_gradients_agree_with_the_oracle"
WORKER, METERS = "pipeline/training/trainer.py", "pipeline/metrics/epoch.py"
CLUSTER = "tests/faults/test_cluster.py::"
RESUME = "tests/faults/test_resume.py::"
TWO_RANKS = "tests/pipeline/training/test_loop.py::test_two_ranks_compute_what_one_does_and_count_each_image_once"

MUTATIONS = (
    # The network
    Mutation(
        "the wavelets turn the wrong way",
        WAVELETS,
        "np.exp(1j * xi * along)",
        "np.exp(-1j * xi * along)",
        ("tests/pipeline/models/test_wavelets.py::test_filters_follow_the_formula",),
    ),
    Mutation(
        "the wavelets keep their mean",
        WAVELETS,
        "_periodize(wave - beta * envelope, height, width)",
        "_periodize(wave, height, width)",
        ("tests/pipeline/models/test_wavelets.py::test_wavelets_have_zero_mean_and_stand_at_their_frequency",),
    ),
    Mutation(
        "borders repeat their last pixel",
        TRANSFORM,
        'mode="reflect"',
        'mode="edge"',
        (CONVOLVED,),
    ),
    Mutation(
        "windows cut the filters short",
        TRANSFORM,
        "SMALLEST_TAP = 1e-7",
        "SMALLEST_TAP = 1e-5",
        (CONVOLVED,),
    ),
    Mutation(
        "a pixel in several windows gets the gradient of one",
        TRANSFORM,
        "            result.addcmul_(gradients[0].index_select(1, places), weight)\n",
        "            pass\n",
        ("tests/pipeline/models/test_wavelet_transform.py::test_the_gradient_is_the_adjoint",),
    ),
    Mutation(
        "a constant leaks into the wavelets in bfloat16",
        TRANSFORM,
        "        mean = pixels.mean(0)\n",
        "        mean = 0 * pixels.mean(0)\n",
        (
            "tests/pipeline/models/test_wavelet_transform.py::test_a_constant_leaves_no_trace_in_wavelets_in_bfloat16_in_those_along_the_rows",
        ),
    ),
    Mutation(
        "the modulus is removed from phase collapse",
        SCATTERING,
        "r = amplitude(z if skip else z[:, :, :, 1:])",
        "r = (z if skip else z[:, :, :, 1:])[:, 0]",
        (ORACLE,),
    ),
    Mutation(
        "the skip connection passes no gradient",
        SCATTERING,
        "torch.addcmul(g_re, ratio, re, out=to_re)",
        "torch.mul(ratio, re, out=to_re)",
        (ORACLE,),
    ),
    Mutation(
        "gains and biases of a non-linearity are mixed up",
        SCATTERING,
        "[:, None, None, None] for name",
        "[:, None, None, None].flip(0) for name",
        (ORACLE,),
    ),
    Mutation(
        "the gradient of the modulus is not that of a unit direction",
        OPERATORS,
        "return (gradients[0] / r) * z",
        "return gradients[0] * z",
        ("tests/pipeline/models/test_nonlinearities.py::test_derivatives_are_those_of_the_formula",),
    ),
    Mutation(
        "the modulus has no derivative at zero",
        OPERATORS,
        "tiny = torch.full((), torch.finfo(z.dtype).tiny,",
        "tiny = torch.full((), 0.0,",
        (
            "tests/pipeline/models/test_nonlinearities.py::test_values_and_derivatives_are_finite_where_a_coefficient_is_zero",
        ),
    ),
    Mutation(
        "the running variance lacks n / (n - 1)",
        PROJECTION,
        "variance = variance * unbiased",
        "variance = variance * 1",
        (
            "tests/pipeline/models/test_projection.py::test_running_statistics_move_a_tenth_of_the_way_to_mean_and_unbiased_variance",
        ),
    ),
    Mutation(
        "evaluation uses the batch's statistics",
        PROJECTION,
        "if not self.training:",
        "if False:",
        ("tests/pipeline/models/test_scattering.py::test_evaluation_uses_running_statistics",),
    ),
    Mutation(
        "the projection is not complex-linear",
        PROJECTION,
        "torch.cat([real, -imaginary[:, part]], dim=1)",
        "torch.cat([real, imaginary[:, part]], dim=1)",
        (ORACLE,),
    ),
    Mutation(
        "the projection's imaginary part gets half of its gradient",
        PROJECTION,
        "-= real[:, channels:]",
        "-= 0 * real[:, channels:]",
        (ORACLE,),
    ),
    Mutation(
        "workers do not share the variance's gradient",
        PROJECTION,
        "by_channel = all_reduce(by_channel)",
        "by_channel = by_channel + 0",
        (
            "tests/pipeline/models/test_batch_stats.py::test_two_workers_with_synchronized_statistics_are_one_with_all_images",
        ),
    ),
    Mutation(
        "the classifier's statistics are each worker's own",
        STATISTICS,
        "if not (self.training and self.synchronized and world_size() > 1):",
        "if True:",
        (
            "tests/pipeline/models/test_batch_stats.py::test_two_workers_with_synchronized_statistics_are_one_with_all_images",
        ),
    ),
    Mutation(
        "a real projection forgets the imaginary parts",
        PROJECTION,
        "+= imaginary.T @ x[:, channels:]",
        "+= 0 * imaginary.T @ x[:, channels:]",
        ("tests/pipeline/models/test_scattering.py",),
    ),
    Mutation(
        "no gradient goes through the batch's variance",
        PROJECTION,
        "slope = -by_channel *",
        "slope = -0 * by_channel *",
        (DERIVATIVES,),
    ),
    Mutation(
        "no gradient goes through the batch's mean",
        PROJECTION,
        "g = gradients[0] - shift.to(x.dtype)",
        "g = gradients[0]",
        (DERIVATIVES,),
    ),
    Mutation(
        "moments of bfloat16 features have its few digits",
        STATISTICS,
        "unused = torch.zeros(2, rows.shape[1], dtype=torch.promote_types(x.dtype, torch.float32),",
        "unused = torch.zeros(2, rows.shape[1], dtype=x.dtype,",
        ("tests/pipeline/models/test_batch_stats.py::test_moments_of_bfloat16_are_those_of_its_numbers",),
    ),
    Mutation(
        "a position without a signal is divided by zero",
        PROJECTION,
        "masked_fill(norm < SMALLEST_NORM, 0)",
        "clamp_max(torch.finfo(precise).max)",
        (
            "tests/pipeline/models/test_projection.py::test_a_position_without_a_signal_stays_zero_and_passes_no_gradient",
        ),
    ),
    Mutation(
        "normalization passes gradients along the signal",
        PROJECTION,
        "torch.addcmul(gradients[0], output, along, value=-1)",
        "torch.addcmul(gradients[0], output, along, value=0)",
        (ORACLE,),
    ),
    Mutation(
        "weight decay pulls on the parameters of non-linearities",
        "pipeline/models/image_network.py",
        ' or ".operator_" in name',
        "",
        ("tests/pipeline/models/test_image_network.py::test_weight_decay_spares_normalization_and_biases",),
    ),
    Mutation(
        "the seed of the weights is ignored",
        "pipeline/models/image_network.py",
        "torch.manual_seed(seed)",
        "torch.manual_seed(0)",
        ("tests/pipeline/models/test_image_network.py::test_seed_decides_the_weights",),
    ),
    # Images
    Mutation(
        "the seed of the order is ignored",
        "data_prep/loading/shuffle.py",
        "permute(positions, self.samples, key(self.seed, self.epoch, Purpose.ORDER))",
        "permute(positions, self.samples, key(0, self.epoch, Purpose.ORDER))",
        ("tests/pipeline/training/test_dataloader.py::test_order_and_crops_depend_on_seed_and_epoch",),
    ),
    Mutation(
        "a permutation takes half of its rounds",
        "data_prep/loading/shuffle.py",
        "ROUNDS = 6",
        "ROUNDS = 2",
        ("tests/data_prep/loading/test_shuffle.py::test_every_sample_is_equally_likely_at_every_place",),
    ),
    Mutation(
        "crops are the same in every epoch",
        "data_prep/loading/transforms.py",
        "uniform(_EACH * ATTEMPTS, seed, epoch, Purpose.AUGMENTATION, samples)",
        "uniform(_EACH * ATTEMPTS, seed, 0, Purpose.AUGMENTATION, samples)",
        ("tests/data_prep/loading/test_transforms.py::test_a_crop_belongs_to_seed_epoch_and_sample_alone",),
    ),
    Mutation(
        "each rank drops a sample of its part",
        "data_prep/loading/loader.py",
        "positions = np.arange(own, end, self._world_size)",
        "positions = np.arange(own, end - 1, self._world_size)",
        ("tests/pipeline/training/test_dataloader.py::test_every_training_image_is_seen_once_an_epoch",),
    ),
    Mutation(
        "ranks count from the batch, not from the epoch",
        "data_prep/loading/loader.py",
        "own = first + (self._rank - first) % self._world_size",
        "own = first + self._rank",
        ("tests/data_prep/loading/test_loader.py::test_an_epoch_goes_on_in_its_middle_with_another_number_of_workers",),
    ),
    Mutation(
        "the last, smaller batch is dropped",
        "data_prep/loading/loader.py",
        "bounds = [*range(start, samples, batch_size), samples]",
        "bounds = [*range(start, samples + 1, batch_size)]",
        ("tests/pipeline/training/test_dataloader.py::test_every_validation_image_is_seen_once_and_in_order",),
    ),
    Mutation(
        "what the decoder says of an image is ignored",
        "data_prep/loading/loader.py",
        '                if self._on_damage == "stop":',
        "                if False:",
        ("tests/pipeline/training/test_dataloader.py::test_a_damaged_image_stops_the_epoch_and_is_named",),
    ),
    Mutation(
        "memory of a batch is given away while views of it are in use",
        "data_prep/loading/loader.py",
        "weakref.finalize(owner, self._give_back, memory)",
        "weakref.finalize(pixels, self._give_back, memory)",
        ("tests/data_prep/loading/test_loader.py::test_batches_that_are_kept_are_never_written_again",),
    ),
    Mutation(
        "preparing stores an image that does not decode",
        "data_prep/codec/convert.py",
        "        if error.kind is Kind.DAMAGE:\n            raise\n",
        "",
        ("tests/data_prep/prepare/test_prepare.py::test_damaged_images_are_not_stored",),
    ),
    Mutation(
        "images are shuffled without the seed",
        "data_prep/prepare/shard_writer.py",
        "key(request.seed, split, Purpose.ORDER)",
        "key(0, split, Purpose.ORDER)",
        ("tests/data_prep/prepare/test_prepare.py::test_images_are_shuffled_by_the_seed_and_written_reproducibly",),
    ),
    Mutation(
        "finished shards are written again",
        "data_prep/prepare/workspace.py",
        "        return record if whole else None",
        "        return None",
        ("tests/data_prep/prepare/test_prepare.py::test_interrupted_preparing_goes_on_where_it_stopped",),
    ),
    Mutation(
        "images of the holdout are trained on",
        DATA,
        'held_out if subset == "holdout" else ~held_out',
        'held_out if subset == "holdout" else everything >= 0',
        ("tests/pipeline/training/test_dataloader.py::test_holdout_is_left_out_of_training_when_it_is_evaluated",),
    ),
    Mutation(
        "a class of textures is brighter than another",
        "data_prep/sources/textures.py",
        "return (field - field.mean()) / field.std()",
        "return (field - field.mean()) / field.std() + 0.02 * label",
        ("tests/data_prep/sources/test_textures.py::test_mean_contrast_color_and_file_size_tell_nothing",),
    ),
    # Training
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
        "a loss that is not finite goes unnoticed",
        "pipeline/metrics/nonfinite.py",
        "if values.isfinite().all():",
        "if True:",
        ("tests/pipeline/training/test_loop.py::test_training_stops_at_a_loss_that_is_not_finite",),
    ),
    Mutation(
        "weight decay acts on normalization and biases",
        "pipeline/training/optimizers.py",
        "exempt = network.no_decay_names()",
        "exempt: set[str] = set()",
        ("tests/pipeline/training/test_optimizers.py",),
    ),
    Mutation(
        "momentum is lost when a run resumes",
        "pipeline/runs/train_state.py",
        '        training.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        ("tests/pipeline/runs/test_train_state.py::test_a_restored_training_goes_on_to_the_same_bits",),
    ),
    # Runs and searches
    Mutation(
        "a resumed epoch begins at its first image",
        WORKER,
        "self._stream.epoch(epoch, state.epoch_in_progress.position)",
        "self._stream.epoch(epoch)",
        (RESUME + "test_every_image_is_once_in_each_epoch_that_led_to_the_weights",),
    ),
    Mutation(
        "a checkpoint that was damaged is used",
        "pipeline/runs/checkpoint_store.py",
        "        if digest(checkpoint / name) != expected:",
        "        if False:",
        (RESUME + "test_a_damaged_checkpoint_costs_the_steps_since_the_one_before",),
    ),
    Mutation(
        "a run that is told to stop does not save",
        WORKER,
        "if wish & (StepAction.SAVE | StepAction.STOP) or",
        "if wish & StepAction.SAVE or",
        (RESUME + "test_a_run_that_is_told_to_stop_finishes_its_step_and_saves",),
    ),
    Mutation(
        "a full disk ends a run at once",
        WORKER,
        "if last or self._failed_saves > settings.checkpoint.max_save_failures:",
        "if True:",
        (RESUME + "test_a_full_disk_is_survived_for_a_while_and_then_told",),
    ),
    Mutation(
        "averaged weights are not averages",
        WORKER,
        "get_ema_multi_avg_fn(decay)",
        "get_ema_multi_avg_fn(decay / 2)",
        ("tests/project/test_recipes.py::test_the_average_follows_its_formula",),
    ),
    Mutation(
        "labels of a part of the classes are not translated",
        "pipeline/inference/evaluation.py",
        "labels[torch.from_numpy(batch.labels)]",
        "torch.from_numpy(batch.labels)",
        ("tests/pipeline/inference/test_evaluation.py::test_classes_are_found_by_their_ids",),
    ),
    Mutation(
        "ranks act on a wish as soon as they have it",
        "pipeline/runtime/coordination.py",
        "        return agreed\n",
        "        return agreed | self._own()\n",
        ("tests/pipeline/runtime/test_coordination.py::test_ranks_act_on_the_first_ones_wish_after_the_same_step",),
    ),
    Mutation(
        "a finished run is not recognized",
        "pipeline/launch/launcher.py",
        "finished_before = folder.finished()",
        "finished_before = False",
        ("tests/integration/test_training.py::test_a_finished_run_says_so_and_changes_nothing",),
    ),
    Mutation(
        "the final model is not tracked",
        "pipeline/launch/launcher.py",
        "tracker.log_file(final, mlflow_run.MODEL_ARTIFACT)",
        "pass",
        ("tests/integration/test_training.py::test_the_tracked_run_holds_all_that_the_run_was",),
    ),
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
        "idle actors of Ray Train run beside a training",
        "pipeline/launch/ray_train.py",
        "type(each).__name__ not in left_out",
        "True",
        ("tests/integration/test_training.py::test_a_second_start_is_refused_and_ctrl_c_ends_run_and_cluster",),
    ),
    Mutation(
        "a cluster without an autoscaler is asked for nodes, through an actor of its own",
        "pipeline/launch/ray_train.py",
        "if self._connection.own_cluster and",
        "if False and",
        ("tests/integration/test_training.py::test_a_second_start_is_refused_and_ctrl_c_ends_run_and_cluster",),
    ),
    Mutation(
        "what a dead controller had reserved stays reserved",
        "pipeline/launch/ray_train.py",
        "                free_reservations()\n",
        "                pass\n",
        (CLUSTER + "test_four_workers_one_of_which_and_whose_controller_are_killed_come_to_the_same_bits",),
    ),
    Mutation(
        "a worker begins where it does not see the run's folder",
        WORKER,
        "if not (job.folder.path / paths.IDENTITY).is_file():",
        "if False:",
        ("tests/pipeline/training/test_trainer.py::test_a_node_that_does_not_see_the_runs_folder_is_named",),
    ),
    Mutation(
        "a worker trains on whatever its node holds",
        WORKER,
        "!= job.folder.identity.data_digest:",
        "== 0:",
        ("tests/pipeline/training/test_trainer.py::test_a_node_with_another_data_set_is_named",),
    ),
    Mutation(
        "the main thread reads what MLflow's server says",
        "pipeline/tracking/mlflow_server.py",
        "        while self.process.poll() is None:\n            time.sleep(LOOK_SECONDS)\n",
        "        self._read()\n",
        ("tests/pipeline/tracking/test_mlflow_run.py::test_ctrl_c_is_heard_while_a_server_talks",),
    ),
    Mutation(
        "what is imported stays subject to garbage collection",
        "pipeline/runtime/imports.py",
        "        gc.freeze()\n",
        "",
        ("tests/pipeline/runtime/test_imports.py::test_the_collector_leaves_alone_what_is_imported",),
    ),
    Mutation(
        "a network that has only shapes is drawn",
        "pipeline/models/projection.py",
        'type == "meta"',
        'type == "nothing"',
        ("tests/project/test_project.py::test_a_network_is_counted_without_loading_a_compiler",),
    ),
    Mutation(
        "an unknown setting is accepted",
        "pipeline/config/schema.py",
        'extra="forbid"',
        'extra="ignore"',
        (
            "tests/pipeline/config/test_settings_io.py::test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed",
        ),
    ),
    Mutation(
        "a run's lock is ignored",
        RUN_FOLDER,
        "        lock.acquire()\n",
        "",
        (
            "tests/pipeline/runs/test_run_folder.py::test_a_second_process_is_refused_until_the_first_is_gone_however_it_went",
        ),
    ),
    Mutation(
        "a run goes on with changed settings",
        RUN_FOLDER,
        "    if changes:\n",
        "    if False:\n",
        ("tests/pipeline/runs/test_run_folder.py::test_changed_settings_are_refused_with_the_difference",),
    ),
    Mutation(
        "a run that is refused leaves its folder behind",
        RUN_FOLDER,
        "    if (path / identity).exists():\n        return\n",
        "    return\n",
        ("tests/pipeline/runs/test_run_folder.py::test_a_run_that_did_not_begin_leaves_nothing_and_fixes_no_setting",),
    ),
    Mutation(
        "runs of trials that were killed stay open in MLflow",
        "tuning/search.py",
        "tracker.end(_STATUS[record.status])",
        "pass",
        ("tests/tuning/test_search_folder.py::test_runs_that_killed_processes_left_open_are_completed_and_ended",),
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
    # Starting with other weights, and leaving as a file
    Mutation(
        "frozen parts are trained",
        "pipeline/models/image_network.py",
        "part.requires_grad_(False)",
        "pass",
        ("tests/pipeline/training/test_finetune.py::test_frozen_parts_and_their_statistics_stay_and_all_others_move",),
    ),
    Mutation(
        "frozen parts move their running statistics",
        "pipeline/models/image_network.py",
        "            part.eval()\n",
        "            pass\n",
        ("tests/pipeline/training/test_finetune.py::test_frozen_parts_and_their_statistics_stay_and_all_others_move",),
    ),
    Mutation(
        "a resumed run loads the weights that it started with",
        WORKER,
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
        "if _digest(checkpoint) != expected:",
        "if False:",
        ("tests/pipeline/training/test_finetune.py::test_weights_that_change_between_launch_and_worker_are_noticed",),
    ),
    Mutation(
        "an exported file is not compared with the network",
        "pipeline/inference/export.py",
        "if not difference <= TOLERANCE",
        "if difference < -TOLERANCE",
        ("tests/pipeline/inference/test_export.py::test_a_file_that_computes_something_else_is_not_kept",),
    ),
    # What a network is said to be
    Mutation(
        "learned spatial filters are not seen",
        INSPECTION,
        "if math.prod(sides) > 1:",
        "if False:",
        ("tests/pipeline/analysis/test_model_summary.py::test_spatial_filters_and_biases_of_a_resnet_are_flagged",),
    ),
    Mutation(
        "the biases that operators learn are not seen",
        INSPECTION,
        "elif not own_name.endswith(SCALES):",
        'elif own_name == "bias":',
        ("tests/pipeline/analysis/test_model_summary.py::test_the_bias_that_an_operator_learns_is_flagged",),
    ),
    Mutation(
        "memory that two layers share is counted twice",
        INSPECTION,
        "storages[storage._cdata] = storage",
        "storages[len(storages)] = storage",
        ("tests/pipeline/analysis/test_model_summary.py::test_memory_is_what_an_image_adds_to_a_real_training_step",),
    ),
    Mutation(
        "what weights take is counted as an image's memory",
        INSPECTION,
        "kept_bytes=more[number] - few[number]",
        "kept_bytes=more[number] // 3",
        ("tests/pipeline/analysis/test_model_summary.py::test_memory_is_what_an_image_adds_to_a_real_training_step",),
    ),
    # What is done with data sets that are prepared
    Mutation(
        "a damaged shard is merged",
        "data_prep/maintain/merge.py",
        "    if digest.hexdigest() != piece.file.sha256:",
        "    if False:",
        ("tests/data_prep/maintain/test_merge.py::test_a_damaged_shard_is_named_and_not_merged",),
    ),
    Mutation(
        "shards that the manifest still names are removed",
        "data_prep/maintain/merge.py",
        "        if name not in named:",
        "        if True:",
        (
            "tests/data_prep/maintain/test_merge.py::test_killed_at_any_moment_it_leaves_a_data_set_that_loads_and_the_same_command_finishes",
        ),
    ),
    Mutation(
        "merged samples lie across pages",
        "data_prep/maintain/merge.py",
        "start = beton.align(position, shard.page_size)",
        "start = position",
        ("tests/data_prep/maintain/test_merge.py::test_pages_fit_the_largest_shard_and_no_sample_crosses_one",),
    ),
    Mutation(
        "samples of merged shards share their numbers",
        "data_prep/maintain/merge.py",
        "+= np.uint64(piece.first_sample)",
        "+= np.uint64(0)",
        ("tests/data_prep/maintain/test_merge.py::test_pages_fit_the_largest_shard_and_no_sample_crosses_one",),
    ),
    Mutation(
        "samples are not compared with what was prepared",
        "data_prep/maintain/split_check.py",
        "if self._whole and self._digest",
        "if False and self._digest",
        (
            "tests/data_prep/maintain/test_verify.py::test_swapped_labels_are_found_even_if_the_hash_of_the_file_was_made_to_fit",
        ),
    ),
    Mutation(
        "images are not decoded when a data set is verified",
        "data_prep/maintain/split_check.py",
        "        problems = check(jobs)",
        "        problems = check(jobs[:0])",
        (
            "tests/data_prep/maintain/test_verify.py::test_images_that_do_not_decode_are_each_named_and_the_list_is_bounded",
        ),
    ),
    Mutation(
        "damaged images that look whole are stored",
        "data_prep/codec/convert.py",
        "for row in [list(headers)[problem.row] for problem in decode.check(jobs)]:",
        "for row in list(headers)[: len(headers) - len(jobs)]:",
        ("tests/data_prep/prepare/test_prepare.py",),
    ),
    Mutation(
        "images are listed in the order in which they are found",
        "data_prep/sources/image_index.py",
        "ORDER BY class, name, number",
        "ORDER BY number",
        ("tests/data_prep/sources/test_image_index.py",),
    ),
    Mutation(
        "statistics move twice where blocks run again",
        PROJECTION,
        "        if is_recomputing():\n            return y\n",
        "",
        ("tests/pipeline/runtime/test_activation_checkpointing.py",),
    ),
    Mutation(
        "statistics of batch normalization move twice where blocks run again",
        STATISTICS,
        "if self.training and is_recomputing():",
        "if False:",
        ("tests/pipeline/runtime/test_activation_checkpointing.py",),
    ),
    Mutation(
        "synchronized statistics move twice where blocks run again",
        STATISTICS,
        "        if not is_recomputing():\n            self._move",
        "        if True:\n            self._move",
        ("tests/pipeline/models/test_batch_stats.py",),
    ),
    Mutation(
        "steps that are taken again are recorded again",
        "pipeline/runs/history.py",
        " and step > self._last",
        "",
        ("tests/pipeline/runs/test_history.py",),
    ),
    Mutation(
        "means over a few steps are over all steps so far",
        "pipeline/metrics/nonfinite.py",
        "        self._sums = [0.0] * 4\n        return {",
        "        return {",
        ("tests/pipeline/training/test_loop.py::test_each_few_steps_have_their_own_means",),
    ),
    Mutation(
        "all workers of a machine are on one NUMA node",
        "pipeline/runtime/numa.py",
        "nodes[local_rank * len(nodes) // max(local_workers, 1)]",
        "nodes[0]",
        ("tests/pipeline/runtime/test_numa.py",),
    ),
    Mutation(
        "picked rows are in the order of the table",
        "data_prep/sources/image_index.py",
        "combine_chunks().take(pa.array(places))",
        "combine_chunks()",
        ("tests/data_prep/sources/test_image_index.py",),
    ),
    Mutation(
        "a damaged file is staged",
        "data_prep/maintain/stage.py",
        "        if found != file.sha256:\n            growing.unlink()\n            raise",
        "        if False:\n            growing.unlink()\n            raise",
        ("tests/data_prep/maintain/test_stage.py::test_a_damaged_source_is_named_and_nothing_gets_the_final_name",),
    ),
    Mutation(
        "whoever waited for a staged data set copies it again",
        "data_prep/maintain/stage.py",
        "if not _is_whole(target, described, check):",
        "if True:",
        ("tests/data_prep/maintain/test_stage.py::test_of_two_at_once_one_copies_and_the_other_waits_for_it",),
    ),
    Mutation(
        "a file that was staged in part is fetched anew",
        "data_prep/maintain/stage.py",
        "start = min(output.seek(0, os.SEEK_END), file.bytes)",
        "start = 0",
        ("tests/data_prep/maintain/test_stage.py::test_what_was_copied_is_not_copied_again",),
    ),
    Mutation(
        "a read that fails is not repeated",
        "data_prep/maintain/remote_reader.py",
        "                if pause is None:",
        "                if True:",
        (
            "tests/data_prep/maintain/test_stage.py::test_a_read_that_fails_twice_is_repeated_and_a_third_failure_is_told",
        ),
    ),
    Mutation(
        "files of a manifest may lie outside of its folder",
        "data_prep/format/manifest.py",
        'path.is_absolute() or ".." in path.parts or',
        "",
        ("tests/data_prep/maintain/test_stage.py::test_addresses_and_names_that_cannot_be_are_told",),
    ),
    Mutation(
        "a contact sheet shows another image than its label",
        "data_prep/maintain/contact_sheet.py",
        ".read(number - int(firsts[file]))",
        ".read(0)",
        (
            "tests/data_prep/maintain/test_inspect.py::test_a_sheet_shows_the_pixels_of_the_samples_in_the_order_of_their_classes",
        ),
    ),
)
