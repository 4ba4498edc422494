/* Of a JPEG only the rectangle that a crop wants is transformed back to pixels, and nothing is read of what lies below it:
 * reading codes takes two thirds of the time. It is decoded at 1/2, 1/4 or 1/8 of its size if the caller allows it and the
 * crop stays as large as the output.
 */
#include "_decode.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "_codes.h"
#include "_resize.h"

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed: other libjpegs cannot decode a rectangle"
#endif

enum { ROWS_AT_ONCE = 4, LARGEST_REDUCTION = 8 };
/* Encoders write about ten scans. A small file may claim thousands, each of which takes as long as an image. */
enum { MOST_SCANS = 100 };
/* For the coefficients of a progressive image; 170 megapixels in full color need as much. */
static const long MOST_MEMORY = 1L << 30;

typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf escape;
    Problem *problem;
} Errors;

/* What libjpeg says of files whose pixels are all there. Everything else is damage, bytes too many as well: that is how
 * codes end that went astray in the middle. */
static int is_harmless(int code) {
    return code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM || code == JWRN_BOGUS_ICC;
}

static void note(j_common_ptr decoder, int kind) {
    Errors *errors = (Errors *)decoder->err;
    if (kind > errors->problem->kind) { /* the first of the worst kind */
        errors->problem->kind = kind;
        decoder->err->format_message(decoder, errors->problem->message);
    }
}

static void on_message(j_common_ptr decoder, int level) {
    if (level < 0) note(decoder, is_harmless(decoder->err->msg_code) ? COMPLAINT : DAMAGE);
}

static void on_error(j_common_ptr decoder) {
    note(decoder, FAILURE);
    longjmp(((Errors *)decoder->err)->escape, 1);
}

/* Another decoder must not try either. */
static void refuse(j_common_ptr decoder, const char *message) {
    Errors *errors = (Errors *)decoder->err;
    errors->problem->kind = DAMAGE;
    snprintf(errors->problem->message, sizeof errors->problem->message, "%s", message);
    longjmp(errors->escape, 1);
}

static void on_progress(j_common_ptr decoder) {
    if (((j_decompress_ptr)decoder)->input_scan_number > MOST_SCANS) refuse(decoder, "it has more than 100 scans");
}

static void fail(Problem *problem, const char *message) {
    problem->kind = FAILURE;
    snprintf(problem->message, sizeof problem->message, "%s", message);
}

/* The strongest reduction that leaves the crop at least as large as the output. */
static int reduction(const Job *job, int out_height, int out_width) {
    int by = LARGEST_REDUCTION;
    while (by > 1 && (job->crop_height < by * out_height || job->crop_width < by * out_width)) by /= 2;
    return by;
}

/* Reads the header and gets ready to decode at 1/by of the size. Returns 0 where it is not the job's image. */
static int begin(struct jpeg_decompress_struct *decoder, const Job *job, int by, Problem *problem) {
    jpeg_mem_src(decoder, (const unsigned char *)(uintptr_t)job->address, (unsigned long)job->size);
    jpeg_read_header(decoder, TRUE);
    if ((int)decoder->image_height != job->height || (int)decoder->image_width != job->width) {
        problem->kind = FAILURE;
        snprintf(problem->message, sizeof problem->message, "it has %u×%u pixels instead of %d×%d", decoder->image_height,
                 decoder->image_width, job->height, job->width);
        jpeg_abort_decompress(decoder);
        return 0;
    }
    decoder->out_color_space = JCS_RGB;
    decoder->dct_method = JDCT_IFAST; /* as FFCV's own loader: the same pixels */
    decoder->scale_num = 1;
    decoder->scale_denom = (unsigned int)by;
    if (jpeg_has_multiple_scans(decoder)) {
        double blocks = 0;
        for (int i = 0; i < decoder->num_components; i++)
            blocks += (double)decoder->comp_info[i].width_in_blocks * decoder->comp_info[i].height_in_blocks;
        if (blocks * sizeof(JBLOCK) > (double)MOST_MEMORY)
            refuse((j_common_ptr)decoder, "it is progressive and needs more than 1 GB of memory: store it as a baseline JPEG");
    }
    jpeg_start_decompress(decoder);
    return 1;
}

static void decode(struct jpeg_decompress_struct *decoder, const Job *job, uint8_t *out, int out_height, int out_width,
                   int reduce, Problem *problem, Scratch *scratch) {
    Errors *errors = (Errors *)decoder->err;
    errors->problem = problem;
    if (setjmp(errors->escape)) {
        jpeg_abort_decompress(decoder);
        return;
    }
    int by = reduce ? reduction(job, out_height, out_width) : 1;
    if (!begin(decoder, job, by, problem)) return;

    /* The rectangle in reduced pixels, and one block more on each side: upsampled colors depend on their neighbours. */
    int margin = decoder->max_h_samp_factor * 8;
    int first_column = job->left / by - margin, last_column = (job->left + job->crop_width + by - 1) / by + margin;
    int first_row = job->top / by, last_row = (job->top + job->crop_height + by - 1) / by;
    int columns = (int)decoder->output_width, rows = (int)decoder->output_height;
    if (first_column < 0) first_column = 0;
    if (last_column > columns) last_column = columns;
    if (last_row > rows) last_row = rows;
    JDIMENSION left = (JDIMENSION)first_column, width = (JDIMENSION)(last_column - first_column);
    if ((int)width < columns) jpeg_crop_scanline(decoder, &left, &width);
    else left = 0;
    width = decoder->output_width;

    size_t stride = 3 * (size_t)width;
    int kept = last_row - first_row;
    int as_it_is = by == 1 && !job->mirrored && (int)width == out_width && job->crop_width == out_width &&
                   job->crop_height == out_height;
    uint8_t *pixels = as_it_is ? out : room(&scratch->pixels, stride * (size_t)(kept + 1));
    if (!pixels) {
        fail(problem, "there is no memory left to decode it");
        jpeg_abort_decompress(decoder);
        return;
    }
    if (first_row) jpeg_skip_scanlines(decoder, (JDIMENSION)first_row);
    for (int row = 0; row < kept;) {
        JSAMPROW pointers[ROWS_AT_ONCE];
        int most = kept - row < ROWS_AT_ONCE ? kept - row : ROWS_AT_ONCE;
        for (int k = 0; k < most; k++) pointers[k] = pixels + stride * (size_t)(row + k);
        row += (int)jpeg_read_scanlines(decoder, pointers, (JDIMENSION)most);
    }
    if (last_row == rows) jpeg_finish_decompress(decoder);
    else jpeg_abort_decompress(decoder); /* what lies below the crop is never read */
    if (!as_it_is && !resize(out, out_height, out_width, pixels, stride, kept, (int)width, (double)job->top / by - first_row,
                             (double)job->left / by - left, (double)job->crop_height / by, (double)job->crop_width / by,
                             job->mirrored, scratch))
        fail(problem, "there is no memory left to resize it");
}

static void expand(const Job *job, uint8_t *out, int out_height, int out_width, Problem *problem, Scratch *scratch) {
    if (!resize(out, out_height, out_width, (const uint8_t *)(uintptr_t)job->address, 3 * (size_t)job->width, job->height,
                job->width, job->top, job->left, job->crop_height, job->crop_width, job->mirrored, scratch))
        fail(problem, "there is no memory left to resize it");
}

/* Finds what decode() would find in the whole image, without its pixels: none is computed if all codes are whole. */
static void check(struct jpeg_decompress_struct *decoder, const Job *job, Problem *problem, Codes *codes, Scratch *scratch) {
    Errors *errors = (Errors *)decoder->err;
    errors->problem = problem;
    if (setjmp(errors->escape)) {
        jpeg_abort_decompress(decoder);
        return;
    }
    if (!begin(decoder, job, LARGEST_REDUCTION, problem)) return;
    if (codes_are_whole(codes, decoder)) {
        jpeg_abort_decompress(decoder);
        return;
    }
    JSAMPROW row = room(&scratch->pixels, 3 * (size_t)decoder->output_width);
    if (!row) {
        fail(problem, "there is no memory left to decode it");
        jpeg_abort_decompress(decoder);
        return;
    }
    while (decoder->output_scanline < decoder->output_height) jpeg_read_scanlines(decoder, &row, 1);
    jpeg_finish_decompress(decoder);
}

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_progress_mgr progress;
    Errors errors;
    Scratch scratch;
} Decoder;

/* Returns 0 where there is no memory left for it. */
static int open_decoder(Decoder *decoder) {
    Problem unseen = {0};
    memset(decoder, 0, sizeof *decoder);
    decoder->errors.problem = &unseen;
    decoder->jpeg.err = jpeg_std_error(&decoder->errors.manager);
    decoder->errors.manager.error_exit = on_error;
    decoder->errors.manager.emit_message = on_message;
    if (setjmp(decoder->errors.escape)) {
        jpeg_destroy_decompress(&decoder->jpeg);
        return 0;
    }
    jpeg_create_decompress(&decoder->jpeg);
    decoder->progress.progress_monitor = on_progress;
    decoder->jpeg.progress = &decoder->progress;
    return 1;
}

static void close_decoder(Decoder *decoder) {
    jpeg_destroy_decompress(&decoder->jpeg);
    free_scratch(&decoder->scratch);
}

int decode_images(const Job *jobs, int count, uint8_t *out, int out_height, int out_width, int reduce,
                  Problem *problems) {
    Decoder decoder;
    if (!open_decoder(&decoder)) return -1;
    int found = 0;
    size_t bytes = (size_t)out_height * out_width * 3;
    for (int i = 0; i < count; i++) {
        Problem *problem = problems + found;
        problem->row = i;
        problem->kind = FINE;
        uint8_t *target = out + bytes * i;
        if (jobs[i].mode == RAW) expand(&jobs[i], target, out_height, out_width, problem, &decoder.scratch);
        else decode(&decoder.jpeg, &jobs[i], target, out_height, out_width, reduce, problem, &decoder.scratch);
        if (problem->kind != FINE) {
            memset(target, 0, bytes);
            found++;
        }
    }
    close_decoder(&decoder);
    return found;
}

int check_images(const Job *jobs, int count, Problem *problems) {
    Codes *codes = codes_new();
    if (!codes) return -1;
    Decoder decoder;
    if (!open_decoder(&decoder)) {
        codes_free(codes);
        return -1;
    }
    int found = 0;
    for (int i = 0; i < count; i++) {
        Problem *problem = problems + found;
        problem->row = i;
        problem->kind = FINE;
        if (jobs[i].mode == JPEG) check(&decoder.jpeg, &jobs[i], problem, codes, &decoder.scratch);
        found += problem->kind != FINE;
    }
    close_decoder(&decoder);
    codes_free(codes);
    return found;
}
