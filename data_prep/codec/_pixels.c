/* Stored images to pixels: decode, crop, resize and mirror a whole table of images in one call, outside of Python's lock.
 *
 * Of a JPEG only the rectangle that a crop wants is transformed back to pixels, and nothing is read of what lies below
 * it: reading codes takes two thirds of the time. It is decoded at 1/2, 1/4 or 1/8 of its size if the caller allows it
 * and the crop stays as large as the output. Resizing averages areas when it shrinks and interpolates linearly when it
 * enlarges. Nothing depends on the processor: sums are taken in one order, without fused multiply-adds.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "_codes.h"

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo is needed: other libjpegs cannot decode a rectangle"
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

enum { JPEG = 0, RAW = 1 };
enum { FINE = 0, COMPLAINT = 1, DAMAGE = 2, FAILURE = 3 };
enum { ROWS_AT_ONCE = 4, LARGEST_REDUCTION = 8 };

/* One image. decode.py lays out its JOB in the same way, and compares it with JOB_LAYOUT below. */
typedef struct {
    uint64_t address, size;
    int32_t mode, height, width;
    int32_t top, left, crop_height, crop_width;
    int32_t mirrored;
} Job;

typedef struct {
    int32_t row, kind;
    char message[JMSG_LENGTH_MAX];
} Problem;

/* Memory that grows to what the largest image needs. */
typedef struct {
    void *memory;
    size_t size;
} Room;

static void *room(Room *room, size_t size) {
    if (room->size < size) {
        free(room->memory);
        room->memory = malloc(size);
        room->size = room->memory ? size : 0;
    }
    return room->memory;
}

/* ---- Resizing -------------------------------------------------------------------------------------------------- */

/* Along one axis: output i is the sum over k < count of weights[i * room + k] * source[firsts[i] + k]. */
typedef struct {
    int32_t *firsts;
    float *weights;
    int room, count;
} Taps;

/* Weights for `outputs` samples of the interval [start, start + length) of a source with `sources` samples. */
static int make_taps(Taps *taps, Room *memory, double start, double length, int sources, int outputs) {
    double scale = length / outputs;
    int most = scale > 1 ? (int)ceil(scale) + 2 : 2;
    if (most > sources) most = sources;
    size_t integers = (size_t)outputs * sizeof(int32_t), size = integers + (size_t)outputs * most * sizeof(float);
    char *bytes = room(memory, size);
    if (!bytes) return 0;
    memset(bytes, 0, size);
    *taps = (Taps){(int32_t *)bytes, (float *)(bytes + integers), most, 1};
    for (int i = 0; i < outputs; i++) {
        float *weights = taps->weights + (size_t)i * most;
        int first, count;
        if (scale > 1) { /* the share of each source sample in the area of the output sample */
            double low = start + i * scale, high = low + scale;
            first = (int)floor(low + 1e-9);
            count = (int)ceil(high - 1e-9) - first;
            if (first + count > sources) count = sources - first;
            double sum = 0;
            for (int k = 0; k < count; k++) {
                double begin = fmax(low, first + k), end = fmin(high, first + k + 1);
                weights[k] = (float)fmax(0, end - begin);
                sum += fmax(0, end - begin);
            }
            for (int k = 0; k < count; k++) weights[k] = (float)(weights[k] / sum);
        } else { /* linear between the two nearest centers, which stay inside the interval */
            double center = start + (i + 0.5) * scale - 0.5;
            center = fmin(fmax(center, start), start + length - 1);
            first = (int)floor(center);
            if (first > sources - 1) first = sources - 1;
            double fraction = center - first;
            count = fraction > 1e-9 && first + 1 < sources ? 2 : 1;
            weights[0] = count == 2 ? (float)(1 - fraction) : 1;
            if (count == 2) weights[1] = (float)fraction;
        }
        taps->firsts[i] = first;
        if (count > taps->count) taps->count = count;
    }
    /* Every output takes as many samples as the one that needs most, some with weight zero, all inside the source. */
    for (int i = 0; i < outputs; i++) {
        int beyond = taps->firsts[i] + taps->count - sources;
        if (beyond > 0) {
            float *weights = taps->weights + (size_t)i * most;
            memmove(weights + beyond, weights, (size_t)(taps->count - beyond) * sizeof(float));
            memset(weights, 0, (size_t)beyond * sizeof(float));
            taps->firsts[i] -= beyond;
        }
    }
    return 1;
}

#define ALWAYS_INLINE static inline __attribute__((always_inline))
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourIntegers __attribute__((vector_size(16)));

/* sums[i] = Σ weights[k] rows[k · stride + i] over k < count, for i < numbers. */
ALWAYS_INLINE void weigh_rows(float *restrict sums, const uint8_t *restrict rows, size_t stride, const float *weights,
                              int count, int numbers) {
    for (int i = 0; i < numbers; i++) {
        float sum = (float)rows[i] * weights[0];
        for (int k = 1; k < count; k++) sum += (float)rows[(size_t)k * stride + i] * weights[k];
        sums[i] = sum;
    }
}

FOR_EACH_PROCESSOR
static void resize_down(float *restrict sums, const uint8_t *restrict rows, size_t stride, const float *weights,
                        int count, int numbers) {
    switch (count) { /* known to the compiler, the loop over rows disappears */
    case 1: weigh_rows(sums, rows, stride, weights, 1, numbers); break;
    case 2: weigh_rows(sums, rows, stride, weights, 2, numbers); break;
    case 3: weigh_rows(sums, rows, stride, weights, 3, numbers); break;
    case 4: weigh_rows(sums, rows, stride, weights, 4, numbers); break;
    default:
        weigh_rows(sums, rows, stride, weights, 4, numbers);
        for (int k = 4; k < count; k++)
            for (int i = 0; i < numbers; i++) sums[i] += (float)rows[(size_t)k * stride + i] * weights[k];
    }
}

/* One output row out of a row of sums, which has room for one number more than it holds. */
ALWAYS_INLINE void weigh_columns(uint8_t *restrict out, const float *restrict sums, const Taps *across, int count,
                                 int width, int step) {
    for (int x = 0; x < width; x++, out += step) {
        const float *weights = across->weights + (size_t)x * across->room;
        const float *pixel = sums + 3 * (size_t)across->firsts[x];
        Four total = {0.5f, 0.5f, 0.5f, 0.5f};
        for (int k = 0; k < count; k++) {
            Four value;
            memcpy(&value, pixel + 3 * k, sizeof value);
            total += value * weights[k];
        }
        FourIntegers rounded = __builtin_convertvector(total, FourIntegers);
        out[0] = (uint8_t)rounded[0];
        out[1] = (uint8_t)rounded[1];
        out[2] = (uint8_t)rounded[2];
    }
}

FOR_EACH_PROCESSOR
static void resize_across(uint8_t *restrict out, const float *restrict sums, const Taps *across, int width,
                          int mirrored) {
    int step = mirrored ? -3 : 3;
    if (mirrored) out += 3 * (size_t)(width - 1);
    switch (across->count) {
    case 1: weigh_columns(out, sums, across, 1, width, step); break;
    case 2: weigh_columns(out, sums, across, 2, width, step); break;
    case 3: weigh_columns(out, sums, across, 3, width, step); break;
    case 4: weigh_columns(out, sums, across, 4, width, step); break;
    default: weigh_columns(out, sums, across, across->count, width, step);
    }
}

typedef struct {
    Room pixels, sums, across, down;
} Scratch;

/* Resizes the rectangle (top, left, height, width), in fractions of pixels, of `source` to fill `out`. */
static int resize(uint8_t *out, int out_height, int out_width, const uint8_t *source, size_t stride, int rows, int columns,
                  double top, double left, double height, double width, int mirrored, Scratch *scratch) {
    Taps down, across;
    if (!make_taps(&down, &scratch->down, top, height, rows, out_height)) return 0;
    if (!make_taps(&across, &scratch->across, left, width, columns, out_width)) return 0;
    int begin = across.firsts[0], end = across.firsts[out_width - 1] + across.count;
    for (int x = 0; x < out_width; x++) across.firsts[x] -= begin;
    int numbers = 3 * (end - begin);
    float *sums = room(&scratch->sums, ((size_t)numbers + 1) * sizeof(float));
    if (!sums) return 0;
    sums[numbers] = 0;
    for (int y = 0; y < out_height; y++) {
        const uint8_t *first = source + (size_t)down.firsts[y] * stride + 3 * (size_t)begin;
        resize_down(sums, first, stride, down.weights + (size_t)y * down.room, down.count, numbers);
        resize_across(out + (size_t)y * out_width * 3, sums, &across, out_width, mirrored);
    }
    return 1;
}

/* ---- JPEG ------------------------------------------------------------------------------------------------------ */

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
    Errors errors;
    Scratch scratch;
} Decoder;

static void open_decoder(Decoder *decoder) {
    memset(decoder, 0, sizeof *decoder);
    decoder->jpeg.err = jpeg_std_error(&decoder->errors.manager);
    decoder->errors.manager.error_exit = on_error;
    decoder->errors.manager.emit_message = on_message;
    jpeg_create_decompress(&decoder->jpeg);
}

static void close_decoder(Decoder *decoder) {
    jpeg_destroy_decompress(&decoder->jpeg);
    free(decoder->scratch.pixels.memory);
    free(decoder->scratch.sums.memory);
    free(decoder->scratch.across.memory);
    free(decoder->scratch.down.memory);
}

/* Fills (count, out_height, out_width, 3) bytes; an image that is not FINE is black. Returns the number of problems. */
static int fill(const Job *jobs, int count, uint8_t *out, int out_height, int out_width, int reduce, Problem *problems) {
    Decoder decoder;
    open_decoder(&decoder);
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

/* Checks whole images. Returns the number of problems, or -1 without memory. */
static int check_all(const Job *jobs, int count, Problem *problems) {
    Codes *codes = codes_new();
    if (!codes) return -1;
    Decoder decoder;
    open_decoder(&decoder);
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

/* ---- Python ---------------------------------------------------------------------------------------------------- */

static int check_job(const Job *job) {
    long long bottom = (long long)job->top + job->crop_height, right = (long long)job->left + job->crop_width;
    int inside = job->top >= 0 && job->left >= 0 && job->crop_height > 0 && job->crop_width > 0 &&
                 bottom <= job->height && right <= job->width;
    int whole = job->address && job->size &&
                (job->mode == JPEG ||
                 (job->mode == RAW && job->size == 3 * (uint64_t)(uint32_t)job->height * (uint64_t)(uint32_t)job->width));
    if (!inside)
        PyErr_Format(PyExc_ValueError, "rectangle %d:%lld, %d:%lld in an image of %d by %d pixels", job->top, bottom, job->left,
                     right, job->height, job->width);
    else if (!whole)
        PyErr_SetString(PyExc_ValueError, "an image has no bytes, is of unknown kind, or has another size than its pixels");
    return inside && whole;
}

/* The number of jobs in a buffer; -1, with an exception, if they are none. */
static int count_jobs(const Py_buffer *jobs) {
    Py_ssize_t count = jobs->len / (Py_ssize_t)sizeof(Job);
    if (jobs->len != count * (Py_ssize_t)sizeof(Job) || count > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "these are no jobs");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!check_job((const Job *)jobs->buf + i)) return -1;
    return (int)count;
}

static PyObject *to_list(const Problem *problems, int count) {
    PyObject *result = PyList_New(count);
    for (int i = 0; result && i < count; i++) {
        PyObject *problem = Py_BuildValue("(iis)", problems[i].row, problems[i].kind, problems[i].message);
        if (!problem) Py_CLEAR(result);
        else PyList_SET_ITEM(result, i, problem);
    }
    return result;
}

static PyObject *python_fill(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer jobs, out;
    int height, width, reduce;
    if (!PyArg_ParseTuple(arguments, "y*w*iip", &jobs, &out, &height, &width, &reduce)) return NULL;
    PyObject *result = NULL;
    Problem *problems = NULL;
    int count = count_jobs(&jobs);
    if (count < 0) goto end;
    if (height <= 0 || width <= 0 || out.len / ((Py_ssize_t)3 * height) != (Py_ssize_t)count * width ||
        out.len % ((Py_ssize_t)3 * height)) {
        PyErr_SetString(PyExc_ValueError, "the output does not fit the jobs");
        goto end;
    }
    problems = malloc(((size_t)count + 1) * sizeof(Problem));
    if (!problems) {
        PyErr_NoMemory();
        goto end;
    }
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = fill(jobs.buf, count, out.buf, height, width, reduce, problems);
    Py_END_ALLOW_THREADS
    result = to_list(problems, found);
end:
    free(problems);
    PyBuffer_Release(&jobs);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *python_check(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer jobs;
    if (!PyArg_ParseTuple(arguments, "y*", &jobs)) return NULL;
    PyObject *result = NULL;
    int count = count_jobs(&jobs), found = -1;
    Problem *problems = count < 0 ? NULL : malloc(((size_t)count + 1) * sizeof(Problem));
    if (problems) {
        Py_BEGIN_ALLOW_THREADS
        found = check_all(jobs.buf, count, problems);
        Py_END_ALLOW_THREADS
    }
    if (found >= 0) result = to_list(problems, found);
    else if (count >= 0) PyErr_NoMemory();
    free(problems);
    PyBuffer_Release(&jobs);
    return result;
}

static PyMethodDef methods[] = {
    {"fill", python_fill, METH_VARARGS,
     "fill(jobs, out, height, width, reduce) -> [(row, kind, message)]: see data_prep.codec.decode.fill."},
    {"check", python_check, METH_VARARGS, "check(jobs) -> [(row, kind, message)]: see data_prep.codec.decode.check."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pixels", NULL, -1, methods, NULL, NULL, NULL, NULL};

#define FIELD(name) {#name, offsetof(Job, name), sizeof(((Job *)0)->name)}
static const struct {
    const char *name;
    size_t offset, size;
} job_fields[] = {
    FIELD(address), FIELD(size), FIELD(mode), FIELD(height), FIELD(width), FIELD(top), FIELD(left),
    FIELD(crop_height), FIELD(crop_width), FIELD(mirrored),
};

/* ((name, offset, size), ...) of Job's fields, in bytes. */
static PyObject *job_layout(void) {
    const Py_ssize_t count = sizeof job_fields / sizeof *job_fields;
    PyObject *layout = PyTuple_New(count);
    for (Py_ssize_t i = 0; layout && i < count; i++) {
        PyObject *field = Py_BuildValue("(snn)", job_fields[i].name, (Py_ssize_t)job_fields[i].offset,
                                        (Py_ssize_t)job_fields[i].size);
        if (!field) Py_CLEAR(layout);
        else PyTuple_SET_ITEM(layout, i, field);
    }
    return layout;
}

PyMODINIT_FUNC PyInit__pixels(void) {
    PyObject *self = PyModule_Create(&module), *layout = self ? job_layout() : NULL;
    if (!layout || PyModule_AddObjectRef(self, "JOB_LAYOUT", layout) < 0 ||
        PyModule_AddIntConstant(self, "JOB_SIZE", (long)sizeof(Job)) < 0)
        Py_CLEAR(self);
    Py_XDECREF(layout);
    return self;
}
