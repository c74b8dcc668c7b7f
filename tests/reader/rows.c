/* usage: rows PACK TENSOR [ID ...]: write the rows, or all of them, as float32 to the standard output.
 * With HHTLD_FROM_MEMORY the file is read into memory first, and the pack reads it there. */
#define HHTLD_ROWS_IMPLEMENTATION
#include "hhtld_rows.h"

static int copied(void *context, uint64_t offset, void *to, size_t n) {
    memcpy(to, (const char *)context + offset, n);
    return 0;
}

static char *content(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    if (file && !fseek(file, 0, SEEK_END) && (data = (char *)malloc((size_t)ftell(file) + 1))) {
        *n = (size_t)ftell(file);
        rewind(file);
        if (fread(data, 1, *n, file) != *n) *n = 0;
    }
    if (file) fclose(file);
    return data;
}

int main(int argc, char **argv) {
    hhtld_error error = {HHTLD_OK, ""};
    size_t nbytes = 0;
    if (argc < 3) return 100;
    char *data = getenv("HHTLD_FROM_MEMORY") ? content(argv[1], &nbytes) : NULL;
    hhtld_pack *pack = data ? hhtld_pack_open_with(copied, data, nbytes, &error) : hhtld_pack_open(argv[1], &error);
    hhtld_rows *rows = pack ? hhtld_rows_open(pack, argv[2], &error) : NULL;
    if (rows) {
        const size_t n = argc > 3 ? (size_t)argc - 3 : (size_t)hhtld_rows_count(rows);
        int64_t *ids = (int64_t *)malloc((n + 1) * sizeof *ids);
        float *out = (float *)malloc((n * (size_t)hhtld_rows_n_cols(rows) + 1) * sizeof *out);
        if (!ids || !out) return 101;
        for (size_t i = 0; i < n; i++) ids[i] = argc > 3 ? strtoll(argv[i + 3], NULL, 10) : (int64_t)i;
        hhtld_rows_prefetch(rows, ids, n);
        if (!hhtld_rows_get(rows, ids, n, out, &error))
            fwrite(out, sizeof *out, n * (size_t)hhtld_rows_n_cols(rows), stdout);
        free(ids), free(out);
    }
    hhtld_rows_close(rows);
    hhtld_pack_close(pack);
    free(data);
    if (error.code) fprintf(stderr, "%s\n", error.text);
    return error.code;
}
