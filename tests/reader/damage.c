/* usage: damage PACK TENSOR [STEP]: read the pack cut short at every length, and with every byte changed.
 *
 * A changed byte is tried twice: as it is, so that a checksum finds it, and with the checksums of header, table and trailer
 * made to fit, so that the reader must judge the values. Sanitizers watch. Prints how many of each were refused. Before
 * the table only every STEP-th length and byte is tried. */
#define HHTLD_ROWS_IMPLEMENTATION
#include "hhtld_rows.h"

typedef struct {
    uint8_t *data;
    size_t n;
} copy;

static int copied(void *context, uint64_t offset, void *to, size_t n) {
    const copy *from = (const copy *)context;
    if (offset > from->n || n > from->n - offset) abort(); /* the reader promises not to ask for it */
    memcpy(to, from->data + offset, n);
    return 0;
}

static int read_all(copy *from, const char *name) {
    hhtld_error error = {HHTLD_OK, ""};
    hhtld_pack *pack = hhtld_pack_open_with(copied, from, from->n, &error);
    hhtld_rows *rows = pack ? hhtld_rows_open(pack, name, &error) : NULL;
    if (rows) {
        float *row = (float *)malloc((size_t)hhtld_rows_n_cols(rows) * sizeof *row);
        if (!row) abort();
        const int64_t n = hhtld_rows_count(rows);
        for (int64_t i = 0; i < n && !error.code;
             i += n > 8 && i == 3 ? n - 7 : 1) /* the first four and the last four */
            hhtld_rows_get(rows, &i, 1, row, &error);
        free(row);
    }
    if (!rows && !error.code) abort(); /* refused without a reason */
    if (error.code && (!*error.text || strlen(error.text) >= sizeof error.text)) abort();
    hhtld_rows_close(rows);
    hhtld_pack_close(pack);
    return error.code;
}

static uint32_t crc(uint32_t value, const uint8_t *bytes, size_t n) {
    for (value = ~value; n--; bytes++) {
        value ^= *bytes;
        for (int i = 0; i < 8; i++) value = value >> 1 ^ (value & 1) * 0xEDB88320u;
    }
    return ~value;
}

static void put(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> 8 * i);
}

static void seal(copy *file, size_t table, size_t table_nbytes) {
    uint8_t *tail = file->data + file->n - 64;
    put(file->data + 60, crc(0, file->data, 60));
    put(tail + 16, crc(crc(0, tail, 16), file->data + table, table_nbytes));
    put(tail + 20, 0);
    put(tail + 20, crc(0, tail, 64));
}

int main(int argc, char **argv) {
    copy whole = {NULL, 0}, part;
    const size_t step = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!file || fseek(file, 0, SEEK_END) || !(whole.data = (uint8_t *)malloc(whole.n = (size_t)ftell(file)))) return 2;
    rewind(file);
    if (fread(whole.data, 1, whole.n, file) != whole.n || fclose(file)) return 2;
    if (read_all(&whole, argv[2])) return 3;

    const uint8_t *tail = whole.data + whole.n - 64;
    const size_t table = (size_t)hhtld_le_(tail, 8), table_nbytes = (size_t)hhtld_le_(tail + 8, 8);
    size_t lengths = 0, cuts = 0, changes = 0, flipped = 0, sealed = 0;
    if (!(part.data = (uint8_t *)malloc(whole.n))) return 2;
    for (part.n = 0; part.n < whole.n; part.n += part.n < table ? step : 1, lengths++) {
        memcpy(part.data, whole.data, part.n);
        cuts += read_all(&part, argv[2]) != HHTLD_OK;
    }
    part.n = whole.n;
    for (size_t i = 0; i < whole.n; i += i < table && i >= 64 ? step : 1, changes++) {
        memcpy(part.data, whole.data, whole.n);
        part.data[i] ^= changes % 2 ? 0x80 : 1;
        flipped += read_all(&part, argv[2]) != HHTLD_OK;
        seal(&part, table, table_nbytes);
        sealed += read_all(&part, argv[2]) != HHTLD_OK;
        for (const char *c = "\"{],09"; *c && i >= table && i < table + table_nbytes; c++) {
            memcpy(part.data, whole.data, whole.n);
            part.data[i] = (uint8_t)*c;
            seal(&part, table, table_nbytes);
            read_all(&part, argv[2]);
        }
    }
    printf("%zu of %zu cuts, %zu and %zu of %zu changes\n", cuts, lengths, flipped, sealed, changes);
    free(whole.data), free(part.data);
    return 0;
}
