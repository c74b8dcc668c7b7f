/* Print rows of a tensor: cc -O3 example.c -lm -o example && ./example model.hhtld embed.weight 0 17 42 */
#define HHTLD_ROWS_IMPLEMENTATION
#include "hhtld_rows.h"

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s PACK TENSOR [ID ...]\n", argv[0]);
        return 1;
    }
    hhtld_error error;
    hhtld_pack *pack = hhtld_pack_open(argv[1], &error);
    hhtld_rows *rows = pack ? hhtld_rows_open(pack, argv[2], &error) : NULL;
    if (!rows) {
        fprintf(stderr, "%s: %s\n", argv[1], error.text);
        hhtld_pack_close(pack);
        return 1;
    }
    const size_t n_cols = (size_t)hhtld_rows_n_cols(rows), n = (size_t)argc - 3;
    printf("%s: %lld rows of %zu columns\n", argv[2], (long long)hhtld_rows_count(rows), n_cols);

    int64_t *ids = (int64_t *)calloc(n + 1, sizeof *ids);
    float *values = (float *)calloc(n * n_cols + 1, sizeof *values);
    int failed = !ids || !values;
    for (size_t i = 0; i < n && !failed; i++) ids[i] = strtoll(argv[i + 3], NULL, 10);
    if (!failed)
        hhtld_rows_prefetch(rows, ids, n); /* as soon as the ids are known, if the rows are not needed at once */
    if (failed || hhtld_rows_get(rows, ids, n, values, &error)) {
        fprintf(stderr, "%s: %s\n", argv[1], failed ? "out of memory" : error.text);
        failed = 1;
    }
    for (size_t i = 0; i < n && !failed; i++) {
        printf("%lld:", (long long)ids[i]);
        for (size_t t = 0; t < 4 && t < n_cols; t++) printf(" %9.6f", (double)values[i * n_cols + t]);
        puts(n_cols > 4 ? " ..." : "");
    }
    free(ids), free(values);
    hhtld_rows_close(rows);
    hhtld_pack_close(pack);
    return failed;
}
