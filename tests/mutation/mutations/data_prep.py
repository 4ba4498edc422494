"""How data_prep is broken: how images are stored, shuffled, read, merged and staged."""

from tests.mutation.mutation import Mutation

MUTATIONS = (
    # data_prep/codec
    Mutation(
        "preparing stores an image that does not decode",
        "data_prep/codec/convert.py",
        "        if error.kind is Severity.DAMAGE:\n            raise\n",
        "",
        ("tests/data_prep/codec/test_convert.py::test_damaged_images_are_not_stored",),
    ),
    Mutation(
        "damaged images that look whole are stored",
        "data_prep/codec/convert.py",
        "for row in [list(headers)[issue.row] for issue in decode.check(jobs)]:",
        "for row in list(headers)[: len(headers) - len(jobs)]:",
        ("tests/data_prep/prepare/test_prepare.py",),
    ),
    Mutation(
        "JPEGs of 12 bits are said to be no images",
        "data_prep/codec/convert.py",
        "            read_header(content)  # says why this JPEG is not read\n",
        "            pass\n",
        ("tests/data_prep/codec/test_convert.py::test_jpegs_of_other_bit_depths_are_refused_with_the_remedy",),
    ),
    Mutation(
        "a test split beside a validation split is taken for a part of it",
        "data_prep/sources/labelled.py",
        'elif said.word == "test":',
        'elif name.startswith("test"):',
        (
            "tests/data_prep/sources/test_passed_over.py::"
            "test_files_beside_those_of_the_splits_are_counted_with_their_reasons",
        ),
    ),
    # data_prep/loading
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
        "every epoch changes the pixels of an image in the same way",
        "data_prep/loading/transforms.py",
        "uniform(count, self.seed, self.epoch, Purpose.PIXELS, self.samples, self.stream)",
        "uniform(count, self.seed, 0, Purpose.PIXELS, self.samples, self.stream)",
        (
            "tests/data_prep/loading/test_transforms.py::"
            "test_augmentations_of_pixels_depend_on_seed_epoch_and_sample_alone",
        ),
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
        (
            "tests/data_prep/loading/test_loader.py::test_an_epoch_is_resumed_in_its_middle_with_another_number_of_workers",
        ),
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
        "data_prep/loading/buffers.py",
        "weakref.finalize(owner, self._give_back, memory)",
        "weakref.finalize(pixels, self._give_back, memory)",
        ("tests/data_prep/loading/test_loader.py::test_batches_that_are_kept_are_never_written_again",),
    ),
    # data_prep/sources
    Mutation(
        "a class of textures is brighter than another",
        "data_prep/sources/textures.py",
        "return (field - field.mean()) / field.std()",
        "return (field - field.mean()) / field.std() + 0.02 * label",
        ("tests/data_prep/sources/test_textures.py::test_mean_contrast_color_and_file_size_tell_nothing",),
    ),
    Mutation(
        "images are listed in the order in which they are found",
        "data_prep/sources/image_index.py",
        "ORDER BY class, name, number",
        "ORDER BY number",
        ("tests/data_prep/sources/test_image_index.py",),
    ),
    Mutation(
        "picked rows are in the order of the table",
        "data_prep/sources/image_index.py",
        "combine_chunks().take(pa.array(places))",
        "combine_chunks()",
        ("tests/data_prep/sources/test_image_index.py",),
    ),
    # data_prep/prepare
    Mutation(
        "images are shuffled without the seed",
        "data_prep/prepare/shard_writer.py",
        "key(spec.seed, split, Purpose.ORDER)",
        "key(0, split, Purpose.ORDER)",
        ("tests/data_prep/prepare/test_prepare.py::test_images_are_shuffled_by_the_seed_and_written_reproducibly",),
    ),
    Mutation(
        "finished shards are written again",
        "data_prep/prepare/workspace.py",
        "        return record if whole else None",
        "        return None",
        ("tests/data_prep/prepare/test_prepare.py::test_interrupted_preparing_resumes_where_it_stopped",),
    ),
    # data_prep/maintain
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
        "if file.file in named or path",
        "if path",
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
        "a damaged file is staged",
        "data_prep/maintain/stage.py",
        "        if found != file.sha256:\n            growing.unlink()\n            raise",
        "        if False:\n            growing.unlink()\n            raise",
        ("tests/data_prep/maintain/test_stage.py::test_a_damaged_source_is_named_and_nothing_gets_the_final_name",),
    ),
    Mutation(
        "a process that waited for a staged data set copies it again",
        "data_prep/maintain/stage.py",
        "if not _is_whole(target, manifest, check):",
        "if True:",
        ("tests/data_prep/maintain/test_stage.py::test_of_two_at_once_one_copies_and_the_other_waits_for_it",),
    ),
    Mutation(
        "a file that was staged in part is fetched again",
        "data_prep/maintain/stage.py",
        "start = min(output.seek(0, os.SEEK_END), file.bytes)",
        "start = 0",
        ("tests/data_prep/maintain/test_stage.py::test_what_was_copied_is_not_copied_again",),
    ),
    Mutation(
        "a read that fails is not repeated",
        "data_prep/common/storage.py",
        "    for delay in delays:",
        "    for delay in delays[:0]:",
        (
            "tests/data_prep/maintain/test_stage.py::test_a_read_that_fails_twice_is_repeated_and_a_third_failure_is_reported",
        ),
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
    # data_prep/format
    Mutation(
        "files of a manifest may lie outside of its folder",
        "data_prep/format/manifest.py",
        "PurePosixPath(name).name != name or ",
        "",
        ("tests/data_prep/maintain/test_stage.py::test_impossible_addresses_and_names_are_refused",),
    ),
    Mutation(
        "a manifest that contradicts itself is believed",
        "data_prep/format/manifest.py",
        "    require_consistent(manifest, str(folder / MANIFEST_FILE))\n",
        "",
        ("tests/data_prep/format/test_manifest.py",),
    ),
    Mutation(
        "the page size of a shard is believed",
        "data_prep/format/beton.py",
        "page_size.bit_count() != 1 or ",
        "",
        ("tests/data_prep/format/test_beton.py::test_a_header_with_impossible_numbers_is_refused",),
    ),
    Mutation(
        "merging removes what has the name of a merged shard",
        "data_prep/maintain/merge.py",
        "if hashed or hash_file(path) == file.sha256:",
        "if hashed or file.sha256:",
        (
            "tests/data_prep/maintain/test_merge.py::test_only_the_files_that_were_merged_are_removed_after_an_interruption",
        ),
    ),
    # data from outside
    Mutation(
        "a process that does not exit outlives its cluster",
        "data_prep/common/ray_cluster/processes.py",
        "                process.kill()",
        "                pass",
        (
            "tests/data_prep/common/test_ray_cluster.py::test_a_cluster_of_our_own_leaves_no_process_even_if_one_does_not_exit",
        ),
    ),
    Mutation(
        "a decoder of any format is tried",
        "data_prep/codec/convert.py",
        ", formats=_readable_formats())",
        ")",
        ("tests/data_prep/codec/test_convert.py::test_formats_that_are_not_listed_are_never_tried",),
    ),
    Mutation(
        "names of files that are being written can be guessed",
        "data_prep/common/files.py",
        '    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")',
        '    partial = path.with_name(f".{path.name}.0123456789abcdef{PARTIAL}")',
        ("tests/data_prep/common/test_files.py::test_no_link_is_followed_and_no_name_guessed",),
    ),
    Mutation(
        "a folder behind a link is taken for unfinished work",
        "data_prep/common/files.py",
        "    found = path.lstat()",
        "    found = path.stat()",
        ("tests/data_prep/common/test_files.py::test_only_a_folder_of_its_own_is_taken_for_unfinished_work",),
    ),
    Mutation(
        "clutter counts as images",
        "data_prep/sources/folders.py",
        "        if is_clutter(image.name):",
        "        if False:",
        ("tests/data_prep/sources/test_passed_over.py::test_clutter_is_passed_over_and_counted_wherever_it_lies",),
    ),
    Mutation(
        "records of finished shards are removed before the output has its name",
        "data_prep/prepare/workspace.py",
        "        self.path.rename(output)\n",
        "        for entry in self.path.glob('*-*.json'):\n            entry.unlink()\n"
        "        self.path.rename(output)\n",
        (
            "tests/data_prep/prepare/test_prepare.py::test_finished_shards_outlive_an_output_that_could_not_be_renamed_to",
        ),
    ),
    Mutation(
        "what goes into a file is shown on the terminal instead",
        "data_prep/common/progress.py",
        '"redirect_stdout": sys.stdout.isatty()',
        '"redirect_stdout": True',
        ("tests/data_prep/common/test_progress.py::test_rows_go_into_the_file_and_the_bar_to_a_terminal_alone",),
    ),
)
