/* Resizing averages areas when it shrinks and interpolates linearly when it enlarges. Sums are taken in one order, without
 * fused multiply-adds, so that pixels do not depend on the processor.
 */
#include "_resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

void *room(Room *room, size_t size) {
    if (room->size < size) {
        free(room->memory);
        room->memory = malloc(size);
        room->size = room->memory ? size : 0;
    }
    return room->memory;
}

void free_scratch(Scratch *scratch) {
    free(scratch->pixels.memory);
    free(scratch->sums.memory);
    free(scratch->across.memory);
    free(scratch->down.memory);
}

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

int resize(uint8_t *out, int out_height, int out_width, const uint8_t *source, size_t stride, int rows, int columns,
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
