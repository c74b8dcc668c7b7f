/* hhtld_rows.h: rows of a tensor in a `.hhtld` pack as float32, in C99 or C++, without any library.
 *
 * In one file of your program, before its other includes:
 *
 *     #define HHTLD_ROWS_IMPLEMENTATION
 *     #include "hhtld_rows.h"
 *
 * Other files include it without the definition. It reads the tensors that Slot T encodes (packs of `bits:...` and
 * `gates`) and gives the same bits as `get_rows` in Python. It refuses a damaged or newer file with a code and a
 * sentence. Many threads may read what is open at once. formats/hhtld/SPEC.md describes the format. */
#ifndef HHTLD_ROWS_H
#define HHTLD_ROWS_H
#if defined(HHTLD_ROWS_IMPLEMENTATION) && !defined(_WIN32)
#define _FILE_OFFSET_BITS 64
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#endif
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hhtld_pack hhtld_pack; /* an open file and its checked table */
typedef struct hhtld_rows hhtld_rows; /* one of its tensors, and what decodes the rows */
enum {
    HHTLD_OK,
    HHTLD_IO,          /* the system cannot open or read the file, or the file became shorter */
    HHTLD_MEMORY,      /* there is not enough memory */
    HHTLD_NOT_A_PACK,  /* the file is of another kind */
    HHTLD_NEWER,       /* the file needs a version or a feature that this reader does not know */
    HHTLD_DAMAGED,     /* a checksum is wrong, or the file breaks a rule of the format */
    HHTLD_NAME,        /* the pack has no tensor of this name */
    HHTLD_UNSUPPORTED, /* the tensor is not encoded by Slot T */
    HHTLD_RANGE        /* the tensor has no such row */
};
typedef struct {
    int code;
    char text[240]; /* a sentence on one line */
} hhtld_error;

/* Open a file and check its table. A function that returns a pointer returns NULL and sets the error if it fails. */
hhtld_pack *hhtld_pack_open(const char *path, hhtld_error *error); /* on systems that have POSIX */
/* The same for bytes that the program reads itself: of a mapped file, with O_DIRECT, on other systems. `read` copies
 * `n` bytes from `offset`, which are always within `nbytes`, and returns 0, or anything else if it cannot. */
typedef int (*hhtld_read)(void *context, uint64_t offset, void *to, size_t n);
hhtld_pack *hhtld_pack_open_with(hhtld_read read, void *context, uint64_t nbytes, hhtld_error *error);
void hhtld_pack_close(hhtld_pack *pack); /* close its rows first */

/* Find a tensor, read what its rows share, and verify the checksums of that. The name is as JSON writes it: beyond
 * ASCII as \u00e9, and with a backslash before a quotation mark or a backslash. */
hhtld_rows *hhtld_rows_open(const hhtld_pack *pack, const char *name, hhtld_error *error);
void hhtld_rows_close(hhtld_rows *rows);
int64_t hhtld_rows_count(const hhtld_rows *rows);
int64_t hhtld_rows_n_cols(const hhtld_rows *rows);
/* Decode rows to out[n][n_cols] in the order of `ids`, which may repeat. Returns HHTLD_OK, or the error's code. */
int hhtld_rows_get(const hhtld_rows *rows, const int64_t *ids, size_t n, float *out, hhtld_error *error);
/* Ask the system to fetch the bytes of rows from the disk, and do not wait for them; only the classes of rows that have
 * rates of their own are read. */
void hhtld_rows_prefetch(const hhtld_rows *rows, const int64_t *ids, size_t n);

#ifdef __cplusplus
}
#endif
#endif

#if defined(HHTLD_ROWS_IMPLEMENTATION) && !defined(HHTLD_ROWS_IMPLEMENTED)
#define HHTLD_ROWS_IMPLEMENTED
#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#include <errno.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bits are the same everywhere because every operation rounds to float32 on its own. */
#if defined(__FAST_MATH__) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#error "hhtld_rows.h needs float arithmetic that rounds every operation: no -ffast-math, and -mfpmath=sse on i386"
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define HHTLD_UNFUSED_ __attribute__((optimize("fp-contract=off")))
#else
#define HHTLD_UNFUSED_
#pragma STDC FP_CONTRACT OFF
#endif

typedef struct {
    uint64_t offset, nbytes;
    uint32_t number, crc, kind; /* the kind's code; 0 if this reader does not know it */
} hhtld_section_;
struct hhtld_pack {
    hhtld_read read;
    void *context;
    int file; /* what `read` reads, or -1 */
    uint64_t size, n_sections;
    char *table; /* JSON and a zero */
    const char *tensors, *groups; /* lists in it */
    hhtld_section_ *sections;
    uint32_t crc[256];
};
/* A section with `width` bytes for every row. */
typedef struct {
    uint64_t offset, width;
} hhtld_part_;
typedef struct {
    hhtld_part_ gains, codes;
    uint32_t rate, n_bits; /* sixteenths of a bit a weight; bits of a state */
    float values[4096];
} hhtld_level_;
enum { HHTLD_RANKED_ = 512 }; /* rows between two counts of the rows of every class */
struct hhtld_rows {
    const hhtld_pack *pack;
    uint64_t n_rows, n_cols, block; /* the largest power of two that is at most n_cols */
    uint32_t n_levels, n_classes, n_centroids, n_lanes;
    uint64_t ring_bits;  /* of a row that closes to a ring, or 0 */
    hhtld_level_ *level; /* of both levels, or of every class of rows */
    uint64_t *ranks;     /* [n_rows / 512][n_classes]: how many rows before are of the class */
    hhtld_part_ classes, twigs, lanes;
    uint8_t *centroids, *basis, *column_scale; /* bfloat16 or NULL: [k][n_cols]; a head, [lane][n_cols]; [n_cols] */
    float slot_l_scale, *signs; /* [2][n_cols] */
};

static int hhtld_fail_(hhtld_error *error, int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(error->text, sizeof error->text, format, list);
    va_end(list);
    return error->code = code;
}
#define HHTLD_NEED_(holds, ...) \
    if (!(holds)) return hhtld_fail_(error, HHTLD_DAMAGED, __VA_ARGS__)
static void *hhtld_allocate_(uint64_t count, size_t size, hhtld_error *error) {
    void *memory = count < SIZE_MAX / size ? calloc((size_t)count + 1, size) : NULL;
    if (!memory) hhtld_fail_(error, HHTLD_MEMORY, "%llu values do not fit into memory", (unsigned long long)count);
    return memory;
}
static uint64_t hhtld_le_(const uint8_t *bytes, int n) {
    uint64_t value = 0;
    while (n--) value = value << 8 | bytes[n];
    return value;
}
static float hhtld_float_(uint64_t bits) {
    const uint32_t low = (uint32_t)bits;
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}
static float hhtld_bf16_(const uint8_t *bytes) { return hhtld_float_(hhtld_le_(bytes, 2) << 16); }
static uint64_t hhtld_aligned_(uint64_t offset) { return (offset + 63) / 64 * 64; }

/* The CRC-32 that zlib computes. */
static uint32_t hhtld_crc_(const hhtld_pack *pack, uint32_t crc, const void *data, uint64_t n) {
    const uint8_t *bytes = (const uint8_t *)data;
    for (crc = ~crc; n--; bytes++) crc = crc >> 8 ^ pack->crc[(crc ^ *bytes) & 255];
    return ~crc;
}
static int hhtld_read_(const hhtld_pack *pack, uint64_t offset, void *to, uint64_t n, hhtld_error *error) {
    errno = 0;
    if (!n || !pack->read(pack->context, offset, to, (size_t)n)) return HHTLD_OK;
    const char *const cause = errno ? strerror(errno) : "the file became shorter";
    return hhtld_fail_(error, HHTLD_IO, "offset %llu cannot be read: %s", (unsigned long long)offset, cause);
}

/* ---- the table's JSON. A value is a pointer to its first character; NULL is a value that is not there. Only what is
 * used is looked into, and the zero after the table ends whatever is not JSON. ---- */
static const char *hhtld_space_(const char *p) { return p + strspn(p, " \t\n\r"); }
/* The end of a value, which is whatever has as many closing brackets as opening ones. */
static const char *hhtld_end_(const char *p) {
    uint64_t depth = 0;
    do {
        depth += *p == '{' || *p == '[';
        depth -= *p == '}' || *p == ']';
        if (*p == '"')
            for (p++; *p && *p != '"'; p++) p += *p == '\\' && p[1];
        else if (!strchr("{}[]", *p)) p += strcspn(p + 1, ",:{}[]\" \t\n\r");
        p += *p != 0;
        if (depth) p += strspn(p, ",: \t\n\r");
    } while (depth && *p);
    return p;
}
/* The first value of a list, or the first key of an object; NULL if there is none. */
static const char *hhtld_first_(const char *p, char bracket) {
    if (!p || *p != bracket) return NULL;
    p = hhtld_space_(p + 1);
    return *p == bracket + 2 || !*p ? NULL : p; /* in ASCII the closing bracket */
}
/* What follows a value and a separator; NULL if nothing does. */
static const char *hhtld_next_(const char *p, char separator) {
    p = p ? hhtld_space_(hhtld_end_(p)) : NULL;
    return p && *p == separator ? hhtld_space_(p + 1) : NULL;
}
static int hhtld_same_(const char *a, const char *b) {
    const size_t n = a && b ? (size_t)(hhtld_end_(a) - a) : 0;
    return n && n == (size_t)(hhtld_end_(b) - b) && !memcmp(a, b, n);
}
/* Whether a value is this text, as JSON writes it. */
static int hhtld_is_(const char *p, const char *text) {
    const size_t n = strlen(text);
    return p && *p == '"' && hhtld_end_(p) == p + n + 2 && !memcmp(p + 1, text, n);
}
/* The value of a key in an object; NULL if it is there never or twice. */
static const char *hhtld_member_(const char *object, const char *key) {
    const char *found = NULL, *value;
    for (const char *p = hhtld_first_(object, '{'); p; p = hhtld_next_(value, ',')) {
        if (!(value = hhtld_next_(p, ':')) || (found && hhtld_is_(p, key))) return NULL;
        if (hhtld_is_(p, key)) found = value;
    }
    return found;
}
/* Whether a value is an integer of at most `limit`. */
static int hhtld_integer_(const char *p, uint64_t limit, uint64_t *value) {
    const char *const end = p ? hhtld_end_(p) : NULL;
    for (*value = 0; p < end; p++) {
        const unsigned digit = (unsigned)(unsigned char)*p - '0';
        if (digit > 9 || digit > limit || *value > (limit - digit) / 10) return 0;
        *value = 10 * *value + digit;
    }
    return end != NULL;
}
/* The double that a number says, whatever the program's locale writes for a point; 0 if it is none. */
static double hhtld_double_(const char *p) {
    char copy[64] = "";
    const size_t n = strspn(p, "+-.0123456789Ee");
    char *const point = strchr((char *)memcpy(copy, p, n < sizeof copy ? n : 0), '.');
    if (point) *point = localeconv()->decimal_point[0];
    return strtod(copy, NULL);
}

/* ---- opening a pack ---- */
static const char *const hhtld_kinds_[19] = {
    "",           "raw",      "palette",  "fisher_z", "entries",  "palette_f32", "twigs",
    "basis",      "slot_l",   "codebook", "slot_v",   "slot_t",   "centroids",   "column_scale",
    "codebook_2", "slot_v_2", "slot_t_2", "file",     "row_class"};

static int hhtld_read_sections_(hhtld_pack *pack, const char *list, uint64_t major, uint64_t features, uint64_t table,
                                hhtld_error *error) {
    uint64_t end = 64, crc;
    HHTLD_NEED_(list && *list == '[', "the table has no list of sections");
    for (const char *p = hhtld_first_(list, '['); p; p = hhtld_next_(p, ',')) pack->n_sections++;
    pack->sections = (hhtld_section_ *)hhtld_allocate_(pack->n_sections, sizeof *pack->sections, error);
    if (!pack->sections) return HHTLD_MEMORY;
    hhtld_section_ *section = pack->sections;
    for (const char *p = hhtld_first_(list, '['); p; p = hhtld_next_(p, ','), section++) {
        const char *const kind = hhtld_member_(p, "kind");
        section->number = (uint32_t)(section - pack->sections);
        HHTLD_NEED_(kind && *kind == '"' && hhtld_integer_(hhtld_member_(p, "offset"), table, &section->offset) &&
                        hhtld_integer_(hhtld_member_(p, "nbytes"), table, &section->nbytes) &&
                        hhtld_integer_(hhtld_member_(p, "crc32"), UINT32_MAX, &crc) &&
                        section->offset == hhtld_aligned_(end) && section->nbytes <= table - section->offset,
                    "section %u has no kind, offset, nbytes and crc32 that fit the file", section->number);
        end = section->offset + section->nbytes, section->crc = (uint32_t)crc;
        for (uint32_t code = 1; code < 19; code++) section->kind += hhtld_is_(kind, hhtld_kinds_[code]) ? code : 0;
        HHTLD_NEED_((section->kind != 18 || features & 2) &&
                        (section->kind < 9 || section->kind > 16 || features & 1) &&
                        ((section->kind != 7 && section->kind != 8) || major == 2),
                    "section %u needs a version or feature bit that the header does not say", section->number);
    }
    HHTLD_NEED_(hhtld_aligned_(end) == table, "the table does not follow the last section");
    return HHTLD_OK;
}
static int hhtld_read_table_(hhtld_pack *pack, hhtld_error *error) {
    uint8_t head[64] = {0}, tail[64] = {0}, zeros[64] = {0};
    int code = hhtld_read_(pack, 0, head, pack->size < 64 ? pack->size : 64, error);
    if (code) return code;
    if (memcmp(head, "\x89HHTLD\r\n", 8)) return hhtld_fail_(error, HHTLD_NOT_A_PACK, "the file is not a .hhtld pack");
    HHTLD_NEED_(pack->size >= 128, "the file is cut short: %u bytes are too few for a pack", (unsigned)pack->size);
    HHTLD_NEED_(hhtld_crc_(pack, 0, head, 60) == hhtld_le_(head + 60, 4), "the header is damaged");
    const uint64_t major = hhtld_le_(head + 8, 2), features = hhtld_le_(head + 16, 8);
    if (major < 1 || major > 2)
        return hhtld_fail_(error, HHTLD_NEWER, "the file has version %u; this reader knows 1 and 2", (unsigned)major);
    for (unsigned bit = 2; bit < 64; bit++)
        if (features >> bit & 1)
            return hhtld_fail_(error, HHTLD_NEWER, "the file needs feature bit %u, which this reader lacks", bit);
    HHTLD_NEED_(hhtld_le_(head + 12, 4) == 64 && !memcmp(head + 32, zeros, 28), "the header breaks a rule");
    if ((code = hhtld_read_(pack, pack->size - 64, tail, 64, error))) return code;
    HHTLD_NEED_(!memcmp(tail + 56, "\x89HHTLE\r\n", 8), "the file has no trailer: it was cut short or added to");
    const uint64_t offset = hhtld_le_(tail, 8), nbytes = hhtld_le_(tail + 8, 8), padded = pack->size - 64 - offset;
    uint64_t crc = hhtld_le_(tail + 20, 4);
    memset(tail + 20, 0, 4);
    HHTLD_NEED_(hhtld_crc_(pack, 0, tail, 64) == crc && !memcmp(tail + 32, zeros, 24), "the trailer is damaged");
    HHTLD_NEED_(hhtld_le_(tail + 24, 8) == pack->size, "the file does not have the length that it declares");
    HHTLD_NEED_(nbytes <= 100000000 && offset % 64 == 0 && offset >= 64 && offset <= pack->size &&
                    hhtld_aligned_(offset + nbytes) == pack->size - 64,
                "the table does not fit the file");
    if (!(pack->table = (char *)hhtld_allocate_(padded, 1, error))) return HHTLD_MEMORY;
    if ((code = hhtld_read_(pack, offset, pack->table, padded, error))) return code;
    crc = hhtld_crc_(pack, hhtld_crc_(pack, 0, tail, 16), pack->table, nbytes);
    HHTLD_NEED_(crc == hhtld_le_(tail + 16, 4) && !memcmp(pack->table + nbytes, zeros, (size_t)(padded - nbytes)),
                "the table is damaged");
    const char *const root = hhtld_space_(pack->table);
    HHTLD_NEED_(strlen(pack->table) == nbytes && !*hhtld_space_(hhtld_end_(root)), "the table is not one JSON object");
    pack->tensors = hhtld_member_(root, "tensors"), pack->groups = hhtld_member_(root, "groups");
    HHTLD_NEED_(pack->tensors && *pack->tensors == '[' && pack->groups, "the table lists no tensors or no groups");
    return hhtld_read_sections_(pack, hhtld_member_(root, "sections"), major, features, offset, error);
}
hhtld_pack *hhtld_pack_open_with(hhtld_read read, void *context, uint64_t nbytes, hhtld_error *error) {
    hhtld_pack *pack = (hhtld_pack *)hhtld_allocate_(1, sizeof *pack, error);
    if (!pack) return NULL;
    pack->read = read, pack->context = context, pack->file = -1, pack->size = nbytes;
    for (uint32_t byte = 0; byte < 256; byte++) {
        pack->crc[byte] = byte;
        for (int i = 0; i < 8; i++) pack->crc[byte] = pack->crc[byte] >> 1 ^ (pack->crc[byte] & 1) * 0xEDB88320u;
    }
    if (!hhtld_read_table_(pack, error)) return pack;
    hhtld_pack_close(pack);
    return NULL;
}

#ifndef _WIN32
static int hhtld_pread_(void *context, uint64_t offset, void *to, size_t n) {
    for (uint8_t *out = (uint8_t *)to; n;) {
        const ssize_t got = pread((int)(intptr_t)context, out, n < 1u << 30 ? n : 1u << 30, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return -1;
        out += got, offset += (uint64_t)got, n -= (size_t)got;
    }
    return 0;
}
hhtld_pack *hhtld_pack_open(const char *path, hhtld_error *error) {
    struct stat facts;
    hhtld_pack *pack = NULL;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &facts)) hhtld_fail_(error, HHTLD_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(facts.st_mode)) hhtld_fail_(error, HHTLD_IO, "%s is not a regular file", path);
    else pack = hhtld_pack_open_with(hhtld_pread_, (void *)(intptr_t)file, (uint64_t)facts.st_size, error);
    if (pack) pack->file = file;
    else if (file >= 0) close(file);
    return pack;
}
#endif

void hhtld_pack_close(hhtld_pack *pack) {
#ifndef _WIN32
    if (pack && pack->file >= 0) close(pack->file);
#endif
    if (pack) free(pack->table), free(pack->sections), free(pack);
}

/* ---- opening a tensor ---- */

/* The section of a kind that a group or tensor has, NULL if it has none; an empty one if what it names is another. */
static const hhtld_section_ *hhtld_section_of_(const hhtld_pack *pack, const char *owner, uint32_t kind) {
    static const hhtld_section_ wrong = {0, 0, 0, 0, 0};
    const char *const member = hhtld_member_(hhtld_member_(owner, "sections"), hhtld_kinds_[kind]);
    uint64_t number;
    if (!member) return NULL;
    if (!hhtld_integer_(member, UINT32_MAX, &number) || number >= pack->n_sections) return &wrong;
    return pack->sections[number].kind == kind ? pack->sections + number : &wrong;
}
/* Read a section of this size and verify its checksum. From `first` on it is bfloat16 values, which must be finite, or
 * even positive if `least` is 1. */
static uint8_t *hhtld_whole_(const hhtld_pack *pack, const hhtld_section_ *section, uint64_t nbytes, uint64_t first,
                             int least, hhtld_error *error) {
    uint8_t head[16], *bytes = NULL;
    int sound = section->nbytes == nbytes;
    if (sound && !(bytes = (uint8_t *)hhtld_allocate_(nbytes, 1, error))) return NULL;
    if (sound && hhtld_read_(pack, section->offset, bytes, nbytes, error)) return free(bytes), (uint8_t *)NULL;
    for (int i = 0; i < 16; i++)
        head[i] = (uint8_t)((i < 8 ? (uint64_t)section->number << 32 | section->kind : nbytes) >> 8 * (i % 8));
    sound = sound && hhtld_crc_(pack, hhtld_crc_(pack, 0, head, 16), bytes, nbytes) == section->crc;
    for (uint64_t i = first; sound && i < nbytes; i += 2)
        sound = isfinite(hhtld_bf16_(bytes + i)) && (hhtld_bf16_(bytes + i) > 0 || !least);
    if (sound) return bytes;
    hhtld_fail_(error, HHTLD_DAMAGED, "section %u (%s) is damaged", section->number, hhtld_kinds_[section->kind]);
    return free(bytes), (uint8_t *)NULL;
}
/* Find a section with `width` bytes for every row. */
static int hhtld_open_part_(const hhtld_rows *rows, const char *tensor, uint32_t kind, uint64_t width,
                            hhtld_part_ *part, hhtld_error *error) {
    const hhtld_section_ *section = hhtld_section_of_(rows->pack, tensor, kind);
    HHTLD_NEED_(section && section->nbytes % width == 0 && section->nbytes / width == rows->n_rows,
                "the tensor has no section %s of the size of its rows", hhtld_kinds_[kind]);
    part->offset = section->offset, part->width = width;
    return HHTLD_OK;
}
/* The levels of all states of a codebook of 72 bytes; 0 if one lies beyond -127 to 127. */
static int hhtld_crossed_(const uint8_t *book, float *values) {
    const int8_t *const levels = (const int8_t *)book + 24;
    int fits = 1;
    for (uint32_t state = 0; state < 4096; state++) {
        uint32_t a = state & 15, b = state >> 4 & 15, c = state >> 8;
        c ^= book[a / 2] >> (a % 2 * 4) & 15;
        a ^= book[8 + c / 2] >> (c % 2 * 4) & 15, b ^= book[16 + c / 2] >> (c % 2 * 4) & 15;
        const int level = levels[a] + levels[16 + b] + levels[32 + c];
        values[state] = (float)level, fits = fits && level >= -127 && level <= 127;
    }
    return fits;
}
/* Read a codebook and a rate, and return the bytes of a row's codes; 0 if they break a rule. */
static uint64_t hhtld_level_width_(hhtld_level_ *level, const uint8_t *book, uint64_t n, const char *p, uint64_t n_cols,
                                   uint64_t *ring_bits) {
    uint64_t rate;
    if (!hhtld_integer_(p, 96, &rate) || rate < 16 || (n == 72 && !hhtld_crossed_(book, level->values))) return 0;
    for (uint64_t i = 0; n != 72 && i < n; i++) level->values[i] = (float)(int8_t)book[i];
    level->rate = (uint32_t)rate, level->n_bits = n == 256 ? 8 : n == 1024 ? 10 : 12;
    if (ring_bits) *ring_bits = n_cols * rate % 16 == 0 && n_cols * rate >= 256 ? n_cols * rate / 16 : 0;
    return level->codes.width = ((ring_bits ? *ring_bits : (n_cols - 1) * rate / 16 + level->n_bits) + 7) / 8;
}
static int hhtld_open_level_(hhtld_rows *rows, const char *tensor, const char *group, int second, hhtld_error *error) {
    hhtld_level_ *level = rows->level + second;
    const hhtld_section_ *const section = hhtld_section_of_(rows->pack, group, second ? 14 : 9);
    const char *const rates = hhtld_first_(hhtld_member_(group, "rates"), '['), *rate = rates;
    uint64_t *const ring_bits = hhtld_member_(group, "ring") ? &rows->ring_bits : NULL;
    const uint64_t n = section ? section->nbytes / rows->n_classes : 0;
    int fits = n == 72 || n == 256 || n == 1024 || n == 4096;
    HHTLD_NEED_(fits, "the group's codebook does not have a known size");
    uint8_t *const book = hhtld_whole_(rows->pack, section, n * rows->n_classes, n * rows->n_classes, 0, error);
    if (!book) return error->code;
    if (!rates) rate = hhtld_member_(group, second ? "rate_2" : "rate");
    for (uint32_t i = 0; i < rows->n_classes; i++, rate = rates ? hhtld_next_(rate, ',') : NULL)
        fits &= hhtld_level_width_(level + i, book + i * n, n, rate, rows->n_cols, ring_bits) != 0;
    free(book);
    HHTLD_NEED_(fits, "the group's codebook breaks a rule, or a rate is not 16 to 96 sixteenths of a bit");
    const int code = hhtld_open_part_(rows, tensor, second ? 15 : 10, 2, &level->gains, error);
    if (code || rates) return code;
    return hhtld_open_part_(rows, tensor, second ? 16 : 11, level->codes.width, &level->codes, error);
}
/* Count the rows of every class, and find where the codes of each begin. */
static int hhtld_open_classes_(hhtld_rows *rows, const char *tensor, hhtld_error *error) {
    const hhtld_section_ *const classes = hhtld_section_of_(rows->pack, tensor, 18);
    const hhtld_section_ *const codes = hhtld_section_of_(rows->pack, tensor, 11);
    const uint64_t n_rows = rows->n_rows, n_ranks = (n_rows / HHTLD_RANKED_ + 1) * rows->n_classes;
    uint64_t counts[16] = {0}, count, done = 0;
    int code = hhtld_open_part_(rows, tensor, 18, 1, &rows->classes, error), fits = 1;
    if (code) return code;
    if (!(rows->ranks = (uint64_t *)hhtld_allocate_(n_ranks, sizeof *rows->ranks, error))) return HHTLD_MEMORY;
    uint8_t *const class_of = hhtld_whole_(rows->pack, classes, n_rows, n_rows, 0, error);
    if (!class_of) return error->code;
    for (uint64_t i = 0; i < n_rows && fits; i++) {
        if (i % HHTLD_RANKED_ == 0)
            memcpy(rows->ranks + i / HHTLD_RANKED_ * rows->n_classes, counts, rows->n_classes * sizeof *counts);
        if ((fits = class_of[i] < rows->n_classes)) counts[class_of[i]]++;
    }
    free(class_of);
    const char *p = hhtld_first_(hhtld_member_(tensor, "class_rows"), '[');
    for (uint32_t i = 0; i < rows->n_classes && codes; i++, p = hhtld_next_(p, ',')) {
        hhtld_part_ *const part = &rows->level[i].codes;
        fits &=
            hhtld_integer_(p, n_rows, &count) && count == counts[i] && count <= (codes->nbytes - done) / part->width;
        part->offset = codes->offset + done, done += fits ? count * part->width : 0;
    }
    HHTLD_NEED_(fits && !p && codes && done == codes->nbytes, "row_class, class_rows and slot_t do not fit each other");
    return HHTLD_OK;
}
/* Open centroids, the basis of Slot L, and column scales, as far as they are there. */
static int hhtld_open_base_(hhtld_rows *rows, const char *tensor, const char *group, hhtld_error *error) {
    const hhtld_pack *pack = rows->pack;
    const uint64_t n_cols = rows->n_cols;
    const hhtld_section_ *const centroids = hhtld_section_of_(pack, group, 12);
    const hhtld_section_ *const basis = hhtld_section_of_(pack, group, 7);
    const hhtld_section_ *const column_scale = hhtld_section_of_(pack, tensor, 13);
    const char *const scale = hhtld_member_(tensor, "slot_l_scale");
    int code = HHTLD_OK;
    if (centroids) {
        const uint64_t k = centroids->nbytes / 2 / n_cols;
        HHTLD_NEED_(k >= 1 && k <= 256, "the group's centroids are not there, or not 1 to 256");
        if (!(rows->centroids = hhtld_whole_(pack, centroids, 2 * k * n_cols, 0, 0, error))) return error->code;
        rows->n_centroids = (uint32_t)k, code = hhtld_open_part_(rows, tensor, 6, 1, &rows->twigs, error);
    }
    HHTLD_NEED_(!basis == !scale, "the group's basis and the tensor's slot_l_scale are not there together");
    if (basis && !code) {
        const uint64_t n_lanes = basis->nbytes < 8 ? 0 : (basis->nbytes - 8) / (4 + 2 * n_cols),
                       first = 8 + 4 * n_lanes;
        const double value = hhtld_double_(scale);
        HHTLD_NEED_(value > 0 && value <= FLT_MAX && (float)value == value, "slot_l_scale is no float32 above 0");
        HHTLD_NEED_(n_lanes >= 1 && n_lanes <= 8, "the group's basis is not there, or has a wrong size");
        rows->slot_l_scale = (float)value, rows->n_lanes = (uint32_t)n_lanes;
        rows->basis = hhtld_whole_(pack, basis, first + 2 * n_lanes * n_cols, first, 0, error);
        if (!rows->basis) return error->code;
        int sound = hhtld_le_(rows->basis, 4) == n_lanes && hhtld_le_(rows->basis + 4, 4) == n_cols;
        for (uint64_t i = 8; i < first; i += 4) sound &= isfinite(hhtld_float_(hhtld_le_(rows->basis + i, 4)));
        HHTLD_NEED_(sound, "the group's basis has another shape, or a singular value that is not finite");
        code = hhtld_open_part_(rows, tensor, 8, 8, &rows->lanes, error);
    }
    if (!column_scale || code) return code;
    rows->column_scale = hhtld_whole_(pack, column_scale, 2 * n_cols, 0, 1, error);
    return rows->column_scale ? HHTLD_OK : error->code;
}
/* Whether a shape is the group's matrix: n_rows is the product of its first sizes, n_cols that of the others. */
static int hhtld_is_matrix_(const char *shape, uint64_t n_rows, uint64_t n_cols) {
    const uint64_t largest = (uint64_t)1 << 48;
    uint64_t size, product = 1, n = 0;
    int fits = 0;
    for (const char *p = hhtld_first_(shape, '['); p; p = hhtld_next_(p, ',')) {
        if (!hhtld_integer_(p, largest, &size) || !size || product > INT64_MAX / 4 / size || ++n > 32) return 0;
        product *= size;
        fits |= product == n_rows && hhtld_next_(p, ',');
    }
    return fits && product % n_cols == 0 && product / n_cols == n_rows;
}
static int hhtld_open_rows_(hhtld_rows *rows, const char *name, hhtld_error *error) {
    const hhtld_pack *pack = rows->pack;
    const char *tensor = hhtld_first_(pack->tensors, '['), *group = hhtld_first_(pack->groups, '['), *p, *alias;
    uint64_t number, seed, n_sections = 0;
    int code;
    while (tensor && !hhtld_is_(hhtld_member_(tensor, "name"), name)) tensor = hhtld_next_(tensor, ',');
    if (!tensor) return hhtld_fail_(error, HHTLD_NAME, "the pack has no tensor of this name");
    if ((p = hhtld_member_(alias = tensor, "alias_of"))) {
        tensor = hhtld_first_(pack->tensors, '[');
        while (tensor && !hhtld_same_(hhtld_member_(tensor, "name"), p)) tensor = hhtld_next_(tensor, ',');
        HHTLD_NEED_(hhtld_same_(hhtld_member_(alias, "shape"), hhtld_member_(tensor, "shape")) &&
                        hhtld_same_(hhtld_member_(alias, "dtype"), hhtld_member_(tensor, "dtype")),
                    "the tensor is the alias of one that is not there, or of another shape or type");
    }
    if (!hhtld_is_(hhtld_member_(tensor, "codec"), "hhtl_t"))
        return hhtld_fail_(error, HHTLD_UNSUPPORTED, "the tensor is not encoded by Slot T; read it with Python");
    if (!hhtld_integer_(hhtld_member_(tensor, "group"), UINT32_MAX, &number)) group = NULL;
    while (group && number--) group = hhtld_next_(group, ',');
    p = hhtld_first_(hhtld_member_(group, "shape"), '[');
    HHTLD_NEED_(hhtld_integer_(p, INT64_MAX, &rows->n_rows) && (p = hhtld_next_(p, ',')) && !hhtld_next_(p, ',') &&
                    hhtld_integer_(p, INT64_MAX, &rows->n_cols) && rows->n_rows && rows->n_cols &&
                    hhtld_is_matrix_(hhtld_member_(tensor, "shape"), rows->n_rows, rows->n_cols) &&
                    hhtld_integer_(hhtld_member_(group, "seed"), UINT64_MAX, &seed),
                "the tensor's group is not there, is of another shape or has no seed");
    rows->n_levels = hhtld_section_of_(pack, group, 14) ? 2 : 1;
    for (p = hhtld_first_(hhtld_member_(group, "rates"), '['); p; p = hhtld_next_(p, ',')) rows->n_classes++;
    HHTLD_NEED_(!hhtld_member_(group, "rates") || (!hhtld_member_(group, "rate") && rows->n_levels == 1 &&
                                                   rows->n_classes >= 2 && rows->n_classes <= 16),
                "the group's rates are not 2 to 16, or not alone");
    const int classed = rows->n_classes != 0;
    p = hhtld_member_(group, "ring");
    HHTLD_NEED_(!p || (!strncmp(p, "true", 4) && !classed && rows->n_levels == 1), "the group's rows cannot be rings");
    rows->n_classes += !classed;
    rows->level = (hhtld_level_ *)hhtld_allocate_(rows->n_classes + 1, sizeof *rows->level, error);
    if (!rows->level) return HHTLD_MEMORY;
    for (uint32_t i = 0; i < rows->n_levels; i++)
        if ((code = hhtld_open_level_(rows, tensor, group, i != 0, error))) return code;
    if (classed && (code = hhtld_open_classes_(rows, tensor, error))) return code;
    if ((code = hhtld_open_base_(rows, tensor, group, error))) return code;
    p = hhtld_first_(hhtld_member_(tensor, "sections"), '{');
    for (; p; p = hhtld_next_(hhtld_next_(p, ':'), ',')) n_sections++;
    number = 2 * rows->n_levels + classed + !!rows->centroids + !!rows->basis + !!rows->column_scale;
    HHTLD_NEED_(n_sections == number && (rows->n_levels == 2) == !!hhtld_member_(group, "rate_2"),
                "the tensor or its group has parts that do not belong together");
    for (rows->block = 1; rows->block * 2 <= rows->n_cols;) rows->block *= 2;
    if (!(rows->signs = (float *)hhtld_allocate_(2 * rows->n_cols, sizeof(float), error))) return HHTLD_MEMORY;
    for (uint64_t k = 0, z; k < 2 * rows->n_cols; k++) { /* splitmix64 */
        z = seed + (k + 1) * 0x9E3779B97F4A7C15u, z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        rows->signs[k] = (z ^ z >> 31) >> 63 ? -1.0f : 1.0f;
    }
    return HHTLD_OK;
}
hhtld_rows *hhtld_rows_open(const hhtld_pack *pack, const char *name, hhtld_error *error) {
    hhtld_rows *rows = (hhtld_rows *)hhtld_allocate_(1, sizeof *rows, error);
    if (!rows) return NULL;
    rows->pack = pack;
    if (!hhtld_open_rows_(rows, name, error)) return rows;
    hhtld_rows_close(rows);
    return NULL;
}
void hhtld_rows_close(hhtld_rows *rows) {
    if (rows)
        free(rows->level), free(rows->ranks), free(rows->centroids), free(rows->basis), free(rows->column_scale),
            free(rows->signs), free(rows);
}
int64_t hhtld_rows_count(const hhtld_rows *rows) { return (int64_t)rows->n_rows; }
int64_t hhtld_rows_n_cols(const hhtld_rows *rows) { return (int64_t)rows->n_cols; }

/* ---- decoding ---- */

HHTLD_UNFUSED_ static void hhtld_decode_level_(const hhtld_level_ *level, const uint8_t *codes, float gain,
                                               uint64_t n_cols, int add, float *out) {
    const uint32_t mask = (1u << level->n_bits) - 1u;
    for (uint64_t t = 0, bit = 0; t < n_cols; t++, bit += level->rate) {
        const uint8_t *const c = codes + (bit >> 7);
        const uint32_t word = (uint32_t)c[0] | (uint32_t)c[1] << 8 | (uint32_t)c[2] << 16 | (uint32_t)c[3] << 24;
        const float y = gain * level->values[word >> (bit >> 4 & 7) & mask];
        out[t] = add ? out[t] + y : y;
    }
}
/* Let the last windows of a ring go on with its first bits. */
static void hhtld_close_ring_(uint8_t *codes, uint64_t n_bits) {
    const uint32_t first = (uint32_t)codes[0] | (uint32_t)codes[1] << 8;
    const uint32_t last = codes[n_bits / 8] & ((1u << n_bits % 8) - 1u), joined = first << n_bits % 8 | last;
    for (int i = 0; i < 3; i++) codes[n_bits / 8 + (uint64_t)i] = (uint8_t)(joined >> 8 * i);
}
/* (x, y) becomes (x + y, x - y) for the values of two runs of `half`. */
static void hhtld_butterflies_(float *x, uint64_t half) {
    for (uint64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
    }
}
static void hhtld_hadamard_(float *x, uint64_t n) {
    const float scale = (float)(1.0 / sqrt((double)n));
    for (uint64_t start = 0; n >= 8 && start < n; start += 8) { /* the first three stages, eight values at once */
        float *const v = x + start;
        for (int i = 0; i < 8; i += 2) hhtld_butterflies_(v + i, 1);
        for (int i = 0; i < 8; i += 4) hhtld_butterflies_(v + i, 2);
        hhtld_butterflies_(v, 4);
    }
    for (uint64_t half = n >= 8 ? 8 : 1; half < n; half *= 2)
        for (uint64_t start = 0; start < n; start += 2 * half) hhtld_butterflies_(x + start, half);
    for (uint64_t i = 0; i < n; i++) x[i] *= scale;
}
/* Turn a row back, and add and divide by what rows share. */
HHTLD_UNFUSED_ static void hhtld_finish_(const hhtld_rows *rows, uint64_t twig, const uint8_t *lanes, float *y) {
    const uint64_t n_cols = rows->n_cols, block = rows->block;
    const uint8_t *const basis = rows->basis ? rows->basis + 8 + 4 * rows->n_lanes : NULL;
    if (block < n_cols) hhtld_hadamard_(y + n_cols - block, block);
    for (uint64_t t = 0; t < n_cols && block < n_cols; t++) y[t] *= rows->signs[n_cols + t];
    hhtld_hadamard_(y, block);
    for (uint64_t t = 0; t < n_cols; t++) y[t] *= rows->signs[t];
    for (uint64_t t = 0; t < n_cols && (rows->centroids || basis); t++) {
        float base = rows->centroids ? hhtld_bf16_(rows->centroids + 2 * (twig * n_cols + t)) : 0.0f;
        for (uint32_t i = 0; i < rows->n_lanes; i++)
            base = base + ((float)(int8_t)lanes[i] * rows->slot_l_scale) * hhtld_bf16_(basis + 2 * (i * n_cols + t));
        y[t] = y[t] + base;
    }
    for (uint64_t t = 0; t < n_cols && rows->column_scale; t++) y[t] = y[t] / hhtld_bf16_(rows->column_scale + 2 * t);
}
/* Read the bytes that a row has in a section; none if the tensor does not have the section. */
static int hhtld_row_(const hhtld_rows *rows, hhtld_part_ part, uint64_t row, uint8_t *to, hhtld_error *error) {
    return hhtld_read_(rows->pack, part.offset + row * part.width, to, part.width, error);
}
/* If rows have classes, find a row's, and its place among the rows of the class. */
static int hhtld_class_(const hhtld_rows *rows, uint64_t row, const hhtld_level_ **level, uint64_t *place,
                        hhtld_error *error) {
    uint8_t class_of[HHTLD_RANKED_];
    const uint64_t first = row / HHTLD_RANKED_ * HHTLD_RANKED_;
    if (!rows->ranks) return HHTLD_OK;
    if (hhtld_read_(rows->pack, rows->classes.offset + first, class_of, row - first + 1, error)) return error->code;
    const uint32_t own = class_of[row - first];
    HHTLD_NEED_(own < rows->n_classes, "row %llu has no class", (unsigned long long)row);
    *level = rows->level + own, *place = rows->ranks[row / HHTLD_RANKED_ * rows->n_classes + own];
    for (uint64_t i = 0; i < row - first; i++) *place += class_of[i] == own;
    return HHTLD_OK;
}
static int hhtld_decode_(const hhtld_rows *rows, uint64_t row, uint8_t *codes, float *out, hhtld_error *error) {
    uint8_t gain[2], twig = 0, lanes[8] = {0};
    for (uint32_t i = 0; i < rows->n_levels; i++) {
        const hhtld_level_ *level = rows->level + i;
        uint64_t place = row;
        if (hhtld_row_(rows, level->gains, row, gain, error) || hhtld_class_(rows, row, &level, &place, error) ||
            hhtld_row_(rows, level->codes, place, codes, error))
            return error->code;
        if (rows->ring_bits) hhtld_close_ring_(codes, rows->ring_bits);
        HHTLD_NEED_(isfinite(hhtld_bf16_(gain)), "the gain of row %llu is not finite", (unsigned long long)row);
        hhtld_decode_level_(level, codes, hhtld_bf16_(gain) / 64, rows->n_cols, i != 0, out);
    }
    if (hhtld_row_(rows, rows->twigs, row, &twig, error)) return error->code;
    if (hhtld_row_(rows, rows->lanes, row, lanes, error)) return error->code;
    HHTLD_NEED_(!rows->centroids || twig < rows->n_centroids, "row %llu names no centroid", (unsigned long long)row);
    hhtld_finish_(rows, twig, lanes, out);
    return HHTLD_OK;
}

int hhtld_rows_get(const hhtld_rows *rows, const int64_t *ids, size_t n, float *out, hhtld_error *error) {
    uint64_t longest = 4; /* windows are read as 32 bits */
    for (uint32_t i = 0; i <= rows->n_classes; i++) longest += rows->level[i].codes.width;
    uint8_t *codes = (uint8_t *)hhtld_allocate_(longest, 1, error);
    int code = codes ? HHTLD_OK : HHTLD_MEMORY;
    for (size_t i = 0; i < n && !code; i++, out += rows->n_cols)
        if ((uint64_t)ids[i] < rows->n_rows) code = hhtld_decode_(rows, (uint64_t)ids[i], codes, out, error);
        else code = hhtld_fail_(error, HHTLD_RANGE, "the tensor has no row %lld", (long long)ids[i]);
    free(codes);
    return code;
}

void hhtld_rows_prefetch(const hhtld_rows *rows, const int64_t *ids, size_t n) {
    hhtld_error error;
    for (size_t i = 0; i < n * rows->n_levels && rows->pack->file >= 0; i++) {
        const hhtld_level_ *level = rows->level + i / n; /* the other parts of a row are small */
        uint64_t place = (uint64_t)ids[i % n];
        if (place >= rows->n_rows || hhtld_class_(rows, place, &level, &place, &error)) continue;
#ifdef POSIX_FADV_WILLNEED
        const uint64_t offset = level->codes.offset + place * level->codes.width;
        (void)posix_fadvise(rows->pack->file, (off_t)offset, (off_t)level->codes.width, POSIX_FADV_WILLNEED);
#endif
    }
}
#endif
