/* Resizing of a rectangle of RGB pixels, and the memory that calls share. */
#ifndef DATA_PREP_RESIZE_H
#define DATA_PREP_RESIZE_H

#include <stddef.h>
#include <stdint.h>

/* Memory that grows to what the largest image needs. */
typedef struct {
    void *memory;
    size_t size;
} Room;

typedef struct {
    Room pixels, sums, across, down;
} Scratch;

/* At least `size` bytes; NULL without memory. What was there before is lost. */
void *room(Room *room, size_t size);
void free_scratch(Scratch *scratch);

/* Resizes the rectangle (top, left, height, width), in fractions of pixels, of `source` to fill `out`. 0 without memory. */
int resize(uint8_t *out, int out_height, int out_width, const uint8_t *source, size_t stride, int rows, int columns,
                  double top, double left, double height, double width, int mirrored, Scratch *scratch);

#endif
