"""How data_prep.codec is broken: what the compiled decoder decodes, crops, resizes, mirrors, refuses and reports."""

from tests.mutation.mutation import Mutation

PIXELS, DECODE, RESIZE, CODES = (f"data_prep/codec/_{name}.c" for name in ("pixels", "decode", "resize", "codes"))
TESTS = "tests/data_prep/codec/test_decode.py::"
CROPS = TESTS + "test_a_crop_is_bitwise_that_of_the_whole_picture"
CHECKS = TESTS + "test_a_check_finds_what_decoding_finds"

MUTATIONS = (
    Mutation(
        "a crop of a JPEG begins a row too high",
        DECODE,
        "jpeg_skip_scanlines(decoder, (JDIMENSION)first_row)",
        "jpeg_skip_scanlines(decoder, (JDIMENSION)first_row - 1)",
        (CROPS,),
    ),
    Mutation(
        "colors at the border of a crop lack their neighbors",
        DECODE,
        "int margin = decoder->max_h_samp_factor * 8;",
        "int margin = 0;",
        (CROPS,),
    ),
    Mutation(
        "an image that is not resized is not mirrored",
        DECODE,
        "by == 1 && !job->mirrored && ",
        "by == 1 && ",
        (CROPS,),
    ),
    Mutation(
        "shrinking weighs each source pixel alike",
        RESIZE,
        "weights[k] = (float)fmax(0, end - begin);",
        "weights[k] = 1;",
        (TESTS + "test_shrinking_averages_areas",),
    ),
    Mutation(
        "enlarging mixes in pixels outside of the crop",
        RESIZE,
        "center = fmin(fmax(center, start), start + length - 1);",
        "center = fmin(fmax(center, 0), sources - 1);",
        (TESTS + "test_enlarging_interpolates_between_centers_and_stays_inside_the_crop",),
    ),
    Mutation(
        "a JPEG is reduced below the size of the output",
        DECODE,
        "job->crop_height < by * out_height || ",
        "job->crop_height < by * out_height && ",
        (TESTS + "test_a_crop_is_never_reduced_below_the_output",),
    ),
    Mutation(
        "libjpeg's warnings are ignored",
        DECODE,
        "if (level < 0) note(",
        "if (level < -1) note(",
        (TESTS + "test_damaged_images_are_black_and_named_and_the_others_whole",),
    ),
    Mutation(
        "an image that is damaged is served as far as it goes",
        DECODE,
        "            memset(target, 0, bytes);\n",
        "",
        (TESTS + "test_damaged_images_are_black_and_named_and_the_others_whole",),
    ),
    Mutation(
        "a decoder that failed is used again as it is",
        DECODE,
        "        jpeg_abort_decompress(decoder);\n        return;\n    }\n    int by = ",
        "        return;\n    }\n    int by = ",
        ("tests/data_prep/codec/test_fuzz.py",),
    ),
    Mutation(
        "a JPEG of another height than stored is decoded",
        DECODE,
        "if ((int)decoder->image_height != job->height || ",
        "if (",
        (TESTS + "test_images_of_another_size_than_stored_are_refused",),
    ),
    Mutation(
        "a rectangle may leave its image on the right",
        PIXELS,
        "bottom <= job->height && right <= job->width;",
        "bottom <= job->height;",
        (TESTS + "test_rectangles_outside_of_the_image_never_reach_the_decoder",),
    ),
    Mutation(
        "pixels may have fewer bytes than their size needs",
        PIXELS,
        "(job->mode == RAW && job->size == ",
        "(job->mode == RAW && job->size <= ",
        (TESTS + "test_tables_and_outputs_must_fit",),
    ),
    Mutation(
        "the codes of a JPEG are not checked",
        DECODE,
        "if (codes_are_whole(codes, decoder)) {",
        "if (1) {",
        (CHECKS,),
    ),
    Mutation(
        "codes that are too few pass the check",
        CODES,
        "        if (8 * (end - next) + count < 0) return 0; /* codes too few */\n",
        "",
        (TESTS + "test_codes_that_end_early_or_late_are_found_to_the_byte",),
    ),
    Mutation(
        "bytes behind the last code pass the check",
        CODES,
        "return 8 * (end - next) + count < 8;",
        "return 1;",
        (TESTS + "test_codes_that_end_early_or_late_are_found_to_the_byte",),
    ),
    Mutation(
        "a step over several codes runs into the next block",
        CODES,
        "if (k + PASSED(step) + ENDS(step) > BLOCK) { /*",
        "if (0) { /*",
        (CHECKS,),
    ),
    Mutation(
        "the layout of a job is not compared with the compiled module's",
        "data_prep/codec/decode.py",
        'getattr(_pixels, "JOB_LAYOUT", None) != _LAYOUT or ',
        "",
        (TESTS + "test_a_compiled_module_with_another_layout_is_refused",),
    ),
)
