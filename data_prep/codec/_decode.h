/* Stored images to pixels: decodes, crops, resizes and mirrors a table of images. */
#ifndef DATA_PREP_DECODE_H
#define DATA_PREP_DECODE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>
#include <jerror.h>

enum { JPEG = 0, RAW = 1 };
enum { FINE = 0, COMPLAINT = 1, DAMAGE = 2, FAILURE = 3 };

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

/* Fills (count, out_height, out_width, 3) bytes; an image that is not FINE is black. Returns the number of problems. */
int decode_images(const Job *jobs, int count, uint8_t *out, int out_height, int out_width, int reduce,
                  Problem *problems);

/* Checks whole images. Returns the number of problems, or -1 without memory. */
int check_images(const Job *jobs, int count, Problem *problems);

#endif
