/* Whether the codes of a JPEG are whole: the check of a file, at several times the speed of decoding it. */
#ifndef DATA_PREP_CODES_H
#define DATA_PREP_CODES_H

#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

typedef struct Codes Codes;

/* What calls share; NULL without memory. */
Codes *codes_new(void);
void codes_free(Codes *codes);

/* 1 if libjpeg would read all codes of the image, behind a jpeg_start_decompress, without a warning; 0 if it might not,
 * or if the image is of a kind that is not looked at here. Nothing of the decoder is changed: it may go on. */
int codes_are_whole(Codes *codes, const struct jpeg_decompress_struct *decoder);

#endif
