"""How pipeline.models and pipeline.analysis are broken: the networks, and what is said of them."""

from tests.mutation.mutation import Mutation

WAVELETS = "pipeline/models/wavelets.py"
TILING = "pipeline/models/tiling.py"
FUSED = "pipeline/models/fused.py"
PROJECTION = "pipeline/models/projection.py"
STATISTICS = "pipeline/models/batch_stats.py"
SCATTERING = "pipeline/models/scattering.py"
INSPECTION = "pipeline/analysis/layer_costs.py"
CONVOLVED = "tests/pipeline/models/test_wavelet_transform.py::test_each_filter_is_convolved_with_the_reflected_signal"
DERIVATIVES = "tests/pipeline/models/test_projection.py::test_derivatives_are_those_of_the_formula"
ORACLE = "tests/pipeline/models/test_scattering.py::test_network_and_gradients_agree_with_the_oracle"

MUTATIONS = (
    # pipeline/models
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
        TILING,
        'mode="reflect"',
        'mode="edge"',
        (CONVOLVED,),
    ),
    Mutation(
        "windows cut the filters short",
        TILING,
        "SMALLEST_TAP = 1e-7",
        "SMALLEST_TAP = 1e-5",
        (CONVOLVED,),
    ),
    Mutation(
        "a pixel in several windows gets the gradient of one",
        FUSED,
        "            result_AWE.addcmul_(gradients[0].index_select(1, places), weight)\n",
        "            pass\n",
        ("tests/pipeline/models/test_wavelet_transform.py::test_the_gradient_is_the_adjoint",),
    ),
    Mutation(
        "a constant leaks into the wavelets in bfloat16",
        FUSED,
        "        mean_PE = x_HPE.mean(0)\n",
        "        mean_PE = 0 * x_HPE.mean(0)\n",
        (
            "tests/pipeline/models/test_wavelet_transform.py::test_a_constant_leaves_no_trace_in_wavelets_in_bfloat16_in_those_along_the_rows",
        ),
    ),
    Mutation(
        "the modulus is removed from phase collapse",
        FUSED,
        "r_STFMNBC = amplitude(z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, 1:])",
        "r_STFMNBC = (z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, 1:])[:, 0]",
        (ORACLE,),
    ),
    Mutation(
        "the skip connection passes no gradient",
        FUSED,
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
        "the parameters of a residual network's non-linearity start at zero",
        "pipeline/models/resnet.py",
        "nn.Parameter(torch.full((channels,), start))",
        "nn.Parameter(torch.zeros(channels))",
        ("tests/pipeline/models/test_resnet.py::test_nonlinearities_have_the_values_of_their_formula",),
    ),
    Mutation(
        "the gradient of the modulus is not that of a unit direction",
        FUSED,
        "return (gradients[0] / r_SPE) * z_SPE",
        "return gradients[0] * z_SPE",
        ("tests/pipeline/models/test_nonlinearities.py::test_derivatives_are_those_of_the_formula",),
    ),
    Mutation(
        "the modulus has no derivative at zero",
        FUSED,
        "tiny = torch.full((), torch.finfo(z_SPE.dtype).tiny,",
        "tiny = torch.full((), 0.0,",
        (
            "tests/pipeline/models/test_nonlinearities.py::test_values_and_derivatives_are_finite_where_a_coefficient_is_zero",
        ),
    ),
    Mutation(
        "the running variance lacks n / (n - 1)",
        PROJECTION,
        "mean_D, variance_I * unbiased)",
        "mean_D, variance_I * 1)",
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
        "-= real_OD[:, channels:]",
        "-= 0 * real_OD[:, channels:]",
        (ORACLE,),
    ),
    Mutation(
        "workers do not share the variance's gradient",
        PROJECTION,
        "by_channel_I = all_reduce(by_channel_I)",
        "by_channel_I = by_channel_I + 0",
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
        "result_POI[0][:, part] += products[1]",
        "result_POI[0][:, part] += 0 * products[1]",
        ("tests/pipeline/models/test_scattering.py",),
    ),
    Mutation(
        "no gradient goes through the batch's variance",
        PROJECTION,
        "slope_I = -by_channel_I *",
        "slope_I = -0 * by_channel_I *",
        (DERIVATIVES,),
    ),
    Mutation(
        "no gradient goes through the batch's mean",
        PROJECTION,
        "g_RO = to_y_RO - shift_O.to(x_RD.dtype)",
        "g_RO = to_y_RO",
        (DERIVATIVES,),
    ),
    Mutation(
        "moments of bfloat16 features have its few digits",
        STATISTICS,
        "unused = torch.zeros(2, rows.shape[1], dtype=torch.promote_types(x_RD.dtype, torch.float32),",
        "unused = torch.zeros(2, rows.shape[1], dtype=x_RD.dtype,",
        ("tests/pipeline/models/test_batch_stats.py::test_moments_of_bfloat16_are_those_of_its_numbers",),
    ),
    Mutation(
        "a position without a signal is divided by zero",
        FUSED,
        "masked_fill(norm_HWB < SMALLEST_NORM, 0)",
        "clamp_max(torch.finfo(precise).max)",
        (
            "tests/pipeline/models/test_projection.py::test_a_position_without_a_signal_stays_zero_and_passes_no_gradient",
        ),
    ),
    Mutation(
        "normalization passes gradients along the signal",
        FUSED,
        "torch.addcmul(gradients[0], output_HPWBC, along_HPWBC, value=-1)",
        "torch.addcmul(gradients[0], output_HPWBC, along_HPWBC, value=0)",
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
    Mutation(
        "a network that has only shapes is drawn",
        "pipeline/models/projection.py",
        'type == "meta"',
        'type == "nothing"',
        ("tests/project/test_project.py::test_a_network_is_counted_without_loading_a_compiler",),
    ),
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
        "statistics move twice where blocks are recomputed",
        PROJECTION,
        "        if is_recomputing():\n            return y_RO\n",
        "",
        ("tests/pipeline/runtime/test_activation_checkpointing.py",),
    ),
    Mutation(
        "statistics of batch normalization move twice where blocks are recomputed",
        STATISTICS,
        "if self.training and is_recomputing():",
        "if False:",
        ("tests/pipeline/runtime/test_activation_checkpointing.py",),
    ),
    Mutation(
        "synchronized statistics move twice where blocks are recomputed",
        STATISTICS,
        "        if not is_recomputing():\n            self._move",
        "        if True:\n            self._move",
        ("tests/pipeline/models/test_batch_stats.py",),
    ),
    # pipeline/analysis
    Mutation(
        "learned spatial filters are not seen",
        INSPECTION,
        "if math.prod(sides) > 1:",
        "if False:",
        ("tests/pipeline/analysis/test_model_summary.py::test_spatial_filters_and_biases_of_a_resnet_are_flagged",),
    ),
    Mutation(
        "the biases that non-linearities learn are not seen",
        INSPECTION,
        "elif not own_name.endswith(SCALES):",
        'elif own_name == "bias":',
        ("tests/pipeline/analysis/test_model_summary.py::test_the_bias_that_a_nonlinearity_learns_is_flagged",),
    ),
    Mutation(
        "memory that two layers share is counted twice",
        INSPECTION,
        "storages[storage_identity(storage)] = storage",
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
)
