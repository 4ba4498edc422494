/* Reads the Huffman codes of a sequential JPEG (ITU-T T.81, annex F.2) as far as is needed to know where each ends.
 *
 * Coefficients are neither computed nor kept, and one look into a table skips all codes that end within LOOK bits, with
 * the bits of the values behind them. What is accepted here is accepted by libjpeg; whatever else there may be
 * (progressive images, restart markers, a code that has no meaning, codes too few or too many) is left to libjpeg.
 */
#include "_codes.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK = 11, LONGEST = 16, BLOCK = 64, TABLES = 2 };
enum { LARGEST_DIFFERENCE = 11 }; /* bits of a constant coefficient's difference, at 8 bits a pixel */
enum { MOST_BYTES = 4 * BLOCK * D_MAX_BLOCKS_IN_MCU }; /* of the codes of one unit, were each as long as a code can be */

/* A step over one code or several: the bits that it takes, the coefficients that it passes, and whether it ends its
 * block. 0 is no step. */
typedef uint32_t Step;
#define STEP(bits, passed, ends) ((Step)(bits) | (Step)(passed) << 8 | (Step)(ends) << 16)
#define BITS(step) ((int)((step) & 0xFF))
#define PASSED(step) ((int)((step) >> 8 & 0xFF))
#define ENDS(step) ((int)((step) >> 16))

/* A Huffman table, in the order of the code's lengths. */
typedef struct {
    JHUFF_TBL source;
    int known;
    Step one[1 << LOOK];         /* by the next LOOK bits: over one code; 0 for longer ones */
    Step several[1 << LOOK];     /* over all codes that end within them */
    uint32_t first[LONGEST + 1]; /* the first code of each length */
    int start[LONGEST + 1];      /* and its place among the values */
} Table;

struct Codes {
    Table tables[2][TABLES]; /* of constant coefficients, and of the others */
    uint8_t *bytes;          /* the codes, without what was put between them to tell them from markers */
    size_t size;
};

Codes *codes_new(void) {
    return calloc(1, sizeof(Codes));
}

void codes_free(Codes *codes) {
    if (codes) free(codes->bytes);
    free(codes);
}

static Step step_of(int symbol, int length, int constant) {
    int passed = symbol >> 4, bits = symbol & 15;
    if (constant) return symbol <= LARGEST_DIFFERENCE ? STEP(length + symbol, 1, 0) : 0;
    if (bits) return STEP(length + bits, passed + 1, 0);
    if (passed == 15) return STEP(length, 16, 0);
    return passed ? 0 : STEP(length, 0, 1);
}

static void derive(Table *table, const JHUFF_TBL *source, int constant) {
    int same = table->known && !memcmp(table->source.bits, source->bits, sizeof source->bits) &&
               !memcmp(table->source.huffval, source->huffval, sizeof source->huffval);
    if (same) return;
    uint8_t lengths[1 << LOOK] = {0};
    table->source = *source;
    table->known = 1;
    memset(table->one, 0, sizeof table->one);
    uint32_t code = 0;
    int place = 0;
    for (int length = 1; length <= LONGEST; length++) {
        table->first[length] = code;
        table->start[length] = place;
        for (int k = 0; k < source->bits[length]; k++, code++, place++) {
            if (length > LOOK) continue;
            Step step = step_of(source->huffval[place], length, constant);
            for (uint32_t rest = 0; rest < 1u << (LOOK - length); rest++) {
                uint32_t next = (code << (LOOK - length)) | rest;
                table->one[next] = step;
                lengths[next] = (uint8_t)length;
            }
        }
        code <<= 1;
    }
    for (uint32_t next = 0; next < 1u << LOOK; next++) {
        int bits = 0, passed = 0, ends = 0;
        while (bits < LOOK && !ends) {
            uint32_t rest = (next << bits) & ((1u << LOOK) - 1);
            Step step = table->one[rest];
            if (!step || bits + lengths[rest] > LOOK || passed + PASSED(step) > BLOCK) break;
            bits += BITS(step);
            passed += PASSED(step);
            ends = ENDS(step);
        }
        table->several[next] = bits ? STEP(bits, passed, ends) : 0;
    }
}

/* The step over a code of more than LOOK bits, by the next LONGEST bits. */
static Step long_step(const Table *table, uint32_t next, int constant) {
    for (int length = LOOK + 1; length <= LONGEST; length++) {
        uint32_t code = next >> (LONGEST - length);
        if (code - table->first[length] < table->source.bits[length])
            return step_of(table->source.huffval[table->start[length] + (int)(code - table->first[length])], length, constant);
    }
    return 0;
}

/* Copies the codes up to the marker that ends the image, and behind them zeros that a unit may run into. Returns the end,
 * or NULL if another marker comes first, or none. */
static const uint8_t *gather(Codes *codes, const uint8_t *from, size_t size) {
    if (codes->size < size + MOST_BYTES) {
        free(codes->bytes);
        codes->size = size + MOST_BYTES;
        codes->bytes = malloc(codes->size);
        if (!codes->bytes) codes->size = 0;
    }
    uint8_t *to = codes->bytes;
    const uint8_t *end = from + size;
    while (to) {
        const uint8_t *mark = memchr(from, 0xFF, (size_t)(end - from));
        if (!mark || end - mark < 2) return NULL;
        int is_code = mark[1] == 0;
        size_t length = (size_t)(mark - from) + (size_t)is_code;
        memcpy(to, from, length);
        to += length;
        from = mark + 2;
        if (!is_code) {
            if (mark[1] != JPEG_EOI) return NULL;
            memset(to, 0, MOST_BYTES);
            return to;
        }
    }
    return NULL;
}

static uint64_t eight_bytes(const uint8_t *bytes) {
    uint64_t value = 0;
    for (int k = 0; k < 8; k++) value = value << 8 | bytes[k]; /* compilers know this as one instruction */
    return value;
}

int codes_are_whole(Codes *codes, const struct jpeg_decompress_struct *decoder) {
    int plain = !decoder->progressive_mode && !decoder->arith_code && decoder->data_precision == 8 &&
                !decoder->restart_interval && decoder->comps_in_scan == decoder->num_components && decoder->Ss == 0 &&
                decoder->Se == BLOCK - 1 && decoder->Ah == 0 && decoder->Al == 0;
    if (!plain) return 0;
    const Table *constant[D_MAX_BLOCKS_IN_MCU], *others[D_MAX_BLOCKS_IN_MCU];
    int blocks = decoder->blocks_in_MCU;
    for (int b = 0; b < blocks; b++) {
        const jpeg_component_info *component = decoder->cur_comp_info[decoder->MCU_membership[b]];
        int first = component->dc_tbl_no, second = component->ac_tbl_no;
        if (first >= TABLES || second >= TABLES) return 0;
        derive(&codes->tables[0][first], decoder->dc_huff_tbl_ptrs[first], 1);
        derive(&codes->tables[1][second], decoder->ac_huff_tbl_ptrs[second], 0);
        constant[b] = &codes->tables[0][first];
        others[b] = &codes->tables[1][second];
    }
    const uint8_t *end = gather(codes, decoder->src->next_input_byte, decoder->src->bytes_in_buffer);
    if (!end) return 0;

    const uint8_t *next = codes->bytes; /* behind the bytes of which `bits` has some */
    uint64_t bits = 0;                  /* the next bits, from the highest on */
    int count = 0;                      /* how many of them are certain */
#define REFILL()                                  \
    if (count < 2 * LONGEST) {                    \
        bits |= eight_bytes(next) >> count;       \
        next += (63 - count) >> 3;                \
        count |= 56;                              \
    }
#define TAKE(step) (bits <<= BITS(step), count -= BITS(step))
    uint64_t units = (uint64_t)decoder->MCUs_per_row * decoder->MCU_rows_in_scan;
    for (uint64_t unit = 0; unit < units; unit++) {
        for (int b = 0; b < blocks; b++) {
            REFILL();
            Step step = constant[b]->one[bits >> (64 - LOOK)];
            if (!step && !(step = long_step(constant[b], (uint32_t)(bits >> (64 - LONGEST)), 1))) return 0;
            TAKE(step);
            for (int k = 1; k < BLOCK;) {
                REFILL();
                step = others[b]->several[bits >> (64 - LOOK)];
                if (!step && !(step = long_step(others[b], (uint32_t)(bits >> (64 - LONGEST)), 0))) return 0;
                if (k + PASSED(step) + ENDS(step) > BLOCK) { /* the block is full before the last of these codes */
                    step = others[b]->one[bits >> (64 - LOOK)];
                    if (!step || k + PASSED(step) + ENDS(step) > BLOCK) return 0;
                }
                TAKE(step);
                if (ENDS(step)) break;
                k += PASSED(step);
            }
        }
        if (8 * (end - next) + count < 0) return 0; /* codes too few */
    }
    return 8 * (end - next) + count < 8; /* or too many: a byte that no code needs */
}
