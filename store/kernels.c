/* The loops over bytes that Arrow and NumPy cannot do in one pass: JSON lines to columns, columns to canonical JSON,
 * columns to hashes, hashes sorted and sought, rows in another order. Plain C without Python: every function gets its
 * buffers from `store/kernels.py`, which knows how much each may hold, and allocates nothing. What is not surely plain is left to Python: a line that
 * `decode_lines` doubts is read exactly, and tests hold every function equal to its slower way.
 */

#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef int32_t i32;
typedef int64_t i64;
typedef uint64_t u64;
typedef unsigned __int128 u128;
typedef __int128 i128;

#define EVERY(byte) (0x0101010101010101ULL * (u64)(byte))
#define GOLDEN 0x9E3779B97F4A7C15ULL
#define BILLION 1000000000ULL

/* In the order of the canonical fields; the strings among them are columns 0 to 5. */
enum { RECORD_ID, TIME, SOURCE_ID, DESTINATION_ID, TYPE, VALUE, UNIT, REFERENCE, FIELDS };
enum { STRINGS = 6 };

static const struct { const char *name; i32 length; i32 column; } FIELD[FIELDS] = {
    {"recordId", 8, 0}, {"time", 4, -1}, {"sourceId", 8, 1}, {"destinationId", 13, 2},
    {"type", 4, 3},     {"value", 5, -1}, {"unit", 4, 4},     {"reference", 9, 5},
};

/* Strings of Arrow: row i is data[offsets[i]:offsets[i + 1]]. */
typedef struct {
    const u8 *data;
    const i32 *offsets;
} Strings;

/* Decimals of Arrow: the low and the high word of each row, which are aligned to no more than a word. */
static i128 decimal_at(const u64 *words, i64 row) { return (i128)((u128)words[2 * row + 1] << 64 | words[2 * row]); }

/* One more with every change of what a function takes or does: what was built of another version is not used. */
i32 kernels_version(void) { return 10; }

/* ---- JSON to columns ---- */

typedef struct {
    const u8 *begin[STRINGS];
    i32 length[STRINGS];
    i64 time;
    i128 value;
} Parsed; /* of all fields once `record_of` is true */

typedef struct {
    i64 record_limit;            /* bytes */
    i64 field_limit, unit_limit; /* characters */
    i64 time_min, time_max;      /* microseconds, time_max itself excluded */
    i64 negative;                /* whether values may be */
} Bounds;

static const u8 *past_space(const u8 *at, const u8 *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) at++;
    return at;
}

/* The first byte that is a quote, a backslash, a control character or not ASCII; `end` if there is none. */
static const u8 *past_plain(const u8 *at, const u8 *end) {
    while (end - at >= 8) {
        u64 word, found, quote, slash, del;
        memcpy(&word, at, 8);
        quote = word ^ EVERY('"'), slash = word ^ EVERY('\\'), del = word ^ EVERY(0x7f);
        found = (word - EVERY(0x20)) | (quote - EVERY(1)) | (slash - EVERY(1)) | (del - EVERY(1));
        found = ((found & ~word) | word) & EVERY(0x80);
        if (found) { /* it may say so too early where a byte before borrowed; then the bytes themselves decide */
            at += __builtin_ctzll(found) >> 3;
            if (*at == '"' || *at == '\\' || *at < 0x20 || *at >= 0x7f) return at;
            at++;
        } else {
            at += 8;
        }
    }
    while (at < end && *at != '"' && *at != '\\' && *at >= 0x20 && *at < 0x7f) at++;
    return at;
}

/* Bytes of the UTF-8 character at `at`, which is not ASCII; 0 if it is none, or is a control character. */
static i32 utf8_length(const u8 *at, const u8 *end) {
    u8 first = at[0];
    i64 left = end - at;
    if (first < 0xc2 || first > 0xf4 || left < 2 || (at[1] & 0xc0) != 0x80) return 0;
    if (first < 0xe0) return first == 0xc2 && at[1] < 0xa0 ? 0 : 2;
    if (left < 3 || (at[2] & 0xc0) != 0x80) return 0;
    if (first < 0xf0) {
        if ((first == 0xe0 && at[1] < 0xa0) || (first == 0xed && at[1] > 0x9f)) return 0;
        return 3;
    }
    if (left < 4 || (at[3] & 0xc0) != 0x80) return 0;
    if ((first == 0xf0 && at[1] < 0x90) || (first == 0xf4 && at[1] > 0x8f)) return 0;
    return 4;
}

/* The quote that ends the string which begins at `at`, or NULL; `characters` are those before it. */
static const u8 *string_end(const u8 *at, const u8 *end, i64 *characters) {
    i64 more = 0; /* bytes that are not the first of their character */
    const u8 *begin = at;
    while ((at = past_plain(at, end)) < end) {
        i32 length;
        if (*at == '"') {
            *characters = at - begin - more;
            return at;
        }
        if (*at < 0x80 || !(length = utf8_length(at, end))) return 0;
        at += length;
        more += length - 1;
    }
    return 0;
}

static int is_digit(u8 byte) { return (u8)(byte - '0') < 10; }

/* -?(0|[1-9][0-9]{0,19})(\.[0-9]{1,9})? as units of 10^-9; the byte behind it, or NULL. */
static const u8 *number_end(const u8 *at, const u8 *end, i128 *value) {
    int negative = at < end && *at == '-';
    const u8 *begin = at += negative;
    u64 whole = 0, fraction = 0, last = 0;
    i32 digits = 0;
    u128 units;
    while (at < end && is_digit(*at) && at - begin < 19) whole = whole * 10 + (*at++ - '0');
    if (at == begin || (*begin == '0' && at - begin > 1)) return 0;
    units = whole;
    if (at < end && is_digit(*at)) { /* the 20th */
        last = *at++ - '0';
        if (at < end && is_digit(*at)) return 0;
        units = units * 10 + last;
    }
    units *= BILLION;
    if (at < end && *at == '.') {
        for (at++; at < end && is_digit(*at); digits++) {
            if (digits == 9) return 0;
            fraction = fraction * 10 + (*at++ - '0');
        }
        if (!digits) return 0;
        for (; digits < 9; digits++) fraction *= 10;
        units += fraction;
    }
    *value = negative ? -(i128)units : (i128)units;
    return at;
}

static i32 two(const u8 *at) { return is_digit(at[0]) && is_digit(at[1]) ? (at[0] - '0') * 10 + (at[1] - '0') : -1; }

static i64 days_of(i64 year, i64 month, i64 day) { /* Hinnant, days_from_civil */
    i64 era, of_era;
    year -= month <= 2;
    era = year / 400;
    of_era = year - era * 400;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 +
           (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1 - 719468;
}

/* RFC 3339 with T and Z or an offset, cut to the microsecond; false where it is not surely that. */
static int time_of(const u8 *at, const u8 *end, i64 *us) {
    static const u8 DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    i32 century, of_century, year, month, day, hour, minute, second, digits = 0;
    i64 fraction = 0, offset = 0;
    if (end - at < 20) return 0;
    century = two(at), of_century = two(at + 2), month = two(at + 5), day = two(at + 8);
    hour = two(at + 11), minute = two(at + 14), second = two(at + 17);
    if (century < 0 || of_century < 0 || at[4] != '-' || at[7] != '-' || at[10] != 'T' || at[13] != ':' || at[16] != ':')
        return 0;
    year = century * 100 + of_century;
    if (year < 1900 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23) return 0;
    if (minute < 0 || minute > 59 || second < 0 || second > 59) return 0;
    if (day > DAYS[month - 1] + (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0))) return 0;
    at += 19;
    if (*at == '.') {
        const u8 *begin = ++at;
        for (; at < end && is_digit(*at); at++)
            if (digits < 6) fraction = fraction * 10 + (*at - '0'), digits++;
        if (at == begin) return 0;
        for (; digits < 6; digits++) fraction *= 10;
    }
    if (at == end) return 0;
    if (*at == 'Z') {
        at++;
    } else {
        i32 hours, minutes, sign = *at == '+' ? 1 : *at == '-' ? -1 : 0;
        if (!sign || end - at < 6 || at[3] != ':') return 0;
        hours = two(at + 1), minutes = two(at + 4);
        if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59) return 0;
        offset = sign * (hours * 60 + minutes);
        at += 6;
    }
    *us = ((days_of(year, month, day) * 1440 + hour * 60 + minute - offset) * 60 + second) * 1000000 + fraction;
    return at == end;
}

/* Which field is called as the key that begins at `at`; the expected one is tried first. -1 if none is. */
static i32 field_at(const u8 *at, const u8 *end, i32 expected) {
    for (i32 tried = 0; tried < FIELDS; tried++) {
        i32 field = (expected + tried) % FIELDS;
        i32 length = FIELD[field].length;
        if (end - at > length && at[length] == '"' && !memcmp(at, FIELD[field].name, length)) return field;
    }
    return -1;
}

/* One record; false where it is not surely valid. `order` are the fields as the line before had them. */
static int record_of(const u8 *at, const u8 *end, const Bounds *bounds, u8 *order, Parsed *found) {
    unsigned seen = 0;
    at = past_space(at, end);
    if (at == end || *at++ != '{') return 0;
    for (i32 member = 0; member < FIELDS; member++) {
        const u8 *close;
        i64 characters = 0;
        i32 field, quoted;
        at = past_space(at, end);
        if (at == end || *at++ != '"') return 0;
        field = field_at(at, end, order[member]);
        if (field < 0 || seen & 1u << field) return 0;
        seen |= 1u << field;
        order[member] = (u8)field;
        at = past_space(at + FIELD[field].length + 1, end);
        if (at == end || *at++ != ':') return 0;
        at = past_space(at, end);
        if (at == end) return 0;
        quoted = *at == '"';
        at += quoted;
        if (field == VALUE) {
            close = number_end(at, end, &found->value);
            if (!close || (quoted && (close == end || *close != '"'))) return 0;
            if (found->value < 0 && !bounds->negative) return 0;
        } else {
            if (!quoted || !(close = string_end(at, end, &characters))) return 0;
            if (field == TIME) {
                if (!time_of(at, close, &found->time)) return 0;
                if (found->time < bounds->time_min || found->time >= bounds->time_max) return 0;
            } else {
                i64 limit = field == UNIT ? bounds->unit_limit : bounds->field_limit;
                i32 column = FIELD[field].column;
                if (characters < 1 || characters > limit) return 0;
                if (field == TYPE && !(close - at == 8 && (!memcmp(at, "positive", 8) || !memcmp(at, "negative", 8))))
                    return 0;
                found->begin[column] = at;
                found->length[column] = (i32)(close - at);
            }
        }
        at = past_space(close + quoted, end);
        if (at == end || *at++ != (member < FIELDS - 1 ? ',' : '}')) return 0;
    }
    return past_space(at, end) == end;
}

/* Where the lines of a text end. Returns how many do; only `room` of them are written. */
i64 line_ends(const u8 *text, i64 length, i64 *ends, i64 room) {
    i64 lines = 0;
    for (const u8 *at = text; (at = memchr(at, '\n', (size_t)(text + length - at))); at++, lines++)
        if (lines < room) ends[lines] = at - text;
    return lines;
}

/* JSON objects `text[starts[i]:ends[i]]` that are surely valid, in `sure` which these are, one behind the other: their
 * times, values and, column by column with room for `rows` each, where their strings begin and how long they are.
 * `sizes` are the bytes of each column. Returns the number of rows.
 */
i64 parse_lines(const u8 *text, i64 rows, const i64 *starts, const i64 *ends, const Bounds *bounds, i32 *begins,
                i32 *lengths, i64 *times, u64 *values, u8 *sure, i64 *sizes) {
    u8 order[FIELDS] = {0, 1, 2, 3, 4, 5, 6, 7};
    i64 row = 0;
    for (i64 line = 0; line < rows; line++) {
        Parsed found = {0};
        sure[line] = ends[line] - starts[line] <= bounds->record_limit &&
            record_of(text + starts[line], text + ends[line], bounds, order, &found);
        if (!sure[line]) continue;
        for (i32 column = 0; column < STRINGS; column++) {
            begins[column * rows + row] = (i32)(found.begin[column] - text);
            lengths[column * rows + row] = found.length[column];
            sizes[column] += found.length[column];
        }
        times[row] = found.time;
        values[2 * row] = (u64)found.value;
        values[2 * row + 1] = (u64)(found.value >> 64);
        row++;
    }
    return row;
}

/* Most strings are short: two moves of a fixed size, which may overlap, are faster than a call. */
static inline u8 *put_bytes(u8 *out, const u8 *data, i64 length) {
    u8 *end = out + length;
    const u8 *stop = data + length;
    if (length > 32) memcpy(out, data, (size_t)length);
    else if (length >= 16) memcpy(out, data, 16), memcpy(end - 16, stop - 16, 16);
    else if (length >= 8) memcpy(out, data, 8), memcpy(end - 8, stop - 8, 8);
    else if (length >= 4) memcpy(out, data, 4), memcpy(end - 4, stop - 4, 4);
    else if (length >= 2) memcpy(out, data, 2), memcpy(end - 2, stop - 2, 2);
    else if (length) *out = *data;
    return end;
}

/* One column of them: `data` has room for its bytes, `offsets` for rows + 1. */
void copy_spans(const u8 *text, i64 rows, const i32 *begins, const i32 *lengths, u8 *data, i32 *offsets) {
    i32 at = 0;
    offsets[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        put_bytes(data + at, text + begins[row], lengths[row]);
        offsets[row + 1] = at += lengths[row];
    }
}

/* ---- Columns to JSON ---- */

#define PUT(out, literal) (memcpy(out, literal, sizeof(literal) - 1), (out) + sizeof(literal) - 1)

static u8 *put_digits(u8 *out, u64 number, i32 width) {
    for (i32 at = width - 1; at >= 0; at--, number /= 10) out[at] = (u8)('0' + number % 10);
    return out + width;
}

static u8 *put_integer(u8 *out, u64 number) {
    u8 digits[20];
    i32 at = 20;
    do digits[--at] = (u8)('0' + number % 10);
    while (number /= 10);
    return put_bytes(out, digits + at, 20 - at);
}

/* Units of 10^-9 in plain notation without trailing zeros: 41 bytes at most. */
static u8 *put_decimal(u8 *out, i128 units) {
    u128 left = units < 0 ? -(u128)units : (u128)units;
    u64 fraction;
    if (units < 0) *out++ = '-';
    if (left >> 64) {
        u128 whole = left / BILLION;
        fraction = (u64)(left - whole * BILLION);
        if (whole >> 64) {
            u128 high = whole / BILLION;
            u64 low = (u64)(whole - high * BILLION);
            if (high >> 64) { /* 10^38 is below 2^64 * 10^27 */
                u128 top = high / BILLION;
                out = put_integer(out, (u64)top);
                out = put_digits(out, (u64)(high - top * BILLION), 9);
            } else {
                out = put_integer(out, (u64)high);
            }
            out = put_digits(out, low, 9);
        } else {
            out = put_integer(out, (u64)whole);
        }
    } else {
        out = put_integer(out, (u64)left / BILLION);
        fraction = (u64)left % BILLION;
    }
    if (fraction) {
        *out++ = '.';
        out = put_digits(out, fraction, 9);
        while (out[-1] == '0') out--;
    }
    return out;
}

/* Microseconds since 1970, of the years up to 9999, as 2024-03-01T12:00:00.000000Z: 27 bytes. */
static u8 *put_time(u8 *out, i64 us) {
    u64 second = (u64)us / 1000000, day = second / 86400, of_day = second % 86400;
    u64 shifted = day + 719468, era = shifted / 146097, of_era = shifted % 146097; /* Hinnant, civil_from_days */
    u64 of_400 = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    u64 of_year = of_era - (365 * of_400 + of_400 / 4 - of_400 / 100);
    u64 part = (5 * of_year + 2) / 153;
    u64 month = part < 10 ? part + 3 : part - 9;
    out = put_digits(out, of_400 + era * 400 + (month <= 2), 4);
    *out++ = '-';
    out = put_digits(out, month, 2);
    *out++ = '-';
    out = put_digits(out, of_year - (153 * part + 2) / 5 + 1, 2);
    *out++ = 'T';
    out = put_digits(out, of_day / 3600, 2);
    *out++ = ':';
    out = put_digits(out, of_day / 60 % 60, 2);
    *out++ = ':';
    out = put_digits(out, of_day % 60, 2);
    *out++ = '.';
    out = put_digits(out, (u64)us % 1000000, 6);
    *out++ = 'Z';
    return out;
}

/* A row as it stands between the quotes of JSON; quotes and backslashes take two bytes. */
static u8 *put_string(u8 *out, const Strings *strings, i64 row, int is_plain) {
    const u8 *at = strings->data + strings->offsets[row], *end = strings->data + strings->offsets[row + 1];
    if (is_plain) return put_bytes(out, at, end - at);
    while (at < end) {
        if (*at == '"' || *at == '\\') *out++ = '\\';
        *out++ = *at++;
    }
    return out;
}

/* 1: nothing is to be escaped; 0: quotes or backslashes; -1: control characters, which are left to Python. */
static int plainness(const Strings *strings, i64 rows) {
    u8 special = 0, control = 0;
    for (const u8 *at = strings->data + strings->offsets[0], *end = strings->data + strings->offsets[rows]; at < end; at++) {
        special |= (*at == '"') | (*at == '\\');
        control |= *at < 0x20;
    }
    return control ? -1 : !special;
}

/* Canonical records, one behind the other; row i ends at offsets[i + 1]. `out` has room for 176 bytes a row and the
 * strings, or twice the strings. Returns the bytes; -1 where a string has a control character, -2 where something is to
 * be escaped and only the strings themselves have room.
 */
i64 render_records(i64 rows, const Strings *strings, const i64 *times, const u64 *values, int is_twice, u8 *out,
                   i32 *offsets) {
    const u8 *begin = out;
    int plain[STRINGS];
    for (i32 column = 0; column < STRINGS; column++)
        if ((plain[column] = plainness(strings + column, rows)) <= -is_twice) return plain[column] < 0 ? -1 : -2;
    offsets[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        out = PUT(out, "{\"recordId\":\"");
        out = put_string(out, strings, row, plain[0]);
        out = PUT(out, "\",\"time\":\"");
        out = put_time(out, times[row]);
        out = PUT(out, "\",\"sourceId\":\"");
        out = put_string(out, strings + 1, row, plain[1]);
        out = PUT(out, "\",\"destinationId\":\"");
        out = put_string(out, strings + 2, row, plain[2]);
        out = PUT(out, "\",\"type\":\"");
        out = put_string(out, strings + 3, row, plain[3]);
        out = PUT(out, "\",\"value\":\"");
        out = put_decimal(out, decimal_at(values, row));
        out = PUT(out, "\",\"unit\":\"");
        out = put_string(out, strings + 4, row, plain[4]);
        out = PUT(out, "\",\"reference\":\"");
        out = put_string(out, strings + 5, row, plain[5]);
        out = PUT(out, "\"}");
        offsets[row + 1] = (i32)(out - begin);
    }
    return out - begin;
}

/* `previous` objects of summaries that have one unit. `out` has room for 384 bytes a row and twice the units. Returns
 * the bytes, or -1 where a unit has a control character.
 */
i64 render_previous(i64 rows, const i64 *count, const i64 *first, const i64 *last, const i64 *last_seq,
                    const Strings *unit, const u64 *positive, const u64 *negative, const u64 *net, u8 *out, i32 *offsets) {
    const u8 *begin = out;
    int plain = plainness(unit, rows);
    if (plain < 0) return -1;
    offsets[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        out = PUT(out, "{\"count\":");
        out = put_integer(out, (u64)count[row]);
        out = PUT(out, ",\"firstTime\":\"");
        out = put_time(out, first[row]);
        out = PUT(out, "\",\"lastTime\":\"");
        out = put_time(out, last[row]);
        out = PUT(out, "\",\"lastSeq\":");
        out = put_integer(out, (u64)last_seq[row]);
        out = PUT(out, ",\"totals\":[{\"unit\":\"");
        out = put_string(out, unit, row, plain);
        out = PUT(out, "\",\"count\":");
        out = put_integer(out, (u64)count[row]);
        out = PUT(out, ",\"positive\":\"");
        out = put_decimal(out, decimal_at(positive, row));
        out = PUT(out, "\",\"negative\":\"");
        out = put_decimal(out, decimal_at(negative, row));
        out = PUT(out, "\",\"net\":\"");
        out = put_decimal(out, decimal_at(net, row));
        out = PUT(out, "\"}]}");
        offsets[row + 1] = (i32)(out - begin);
    }
    return out - begin;
}

/* Notification lines of rows whose seqs follow one another: `records` row by row, `previous` by their `place`. `middle`
 * is what stands between the seq and the record. `out` has room for 64 bytes and the middle a row, and what they say.
 */
i64 render_notifications(i64 rows, i64 first_seq, const u8 *middle, i64 middle_length, const Strings *records,
                         const Strings *previous, const i64 *place, u8 *out) {
    const u8 *begin = out;
    for (i64 row = 0; row < rows; row++) {
        i32 at = records->offsets[row];
        i32 of = previous->offsets[place[row]];
        out = PUT(out, "{\"seq\":");
        out = put_integer(out, (u64)(first_seq + row));
        out = put_bytes(out, middle, middle_length);
        out = put_bytes(out, records->data + at, records->offsets[row + 1] - at);
        out = PUT(out, ",\"previous\":");
        out = put_bytes(out, previous->data + of, previous->offsets[place[row] + 1] - of);
        out = PUT(out, "}\n");
    }
    return out - begin;
}

/* ---- Columns to hashes, as store/hashing.py has them ---- */

enum { WORDS = 256, LANES = 3, HI = 0, LO = 1, PRINT = 2 };

static u64 rotated(u64 lane, i32 turn) { return lane << turn | lane >> (64 - turn); }

static u64 mixed(u64 lane) {
    lane = (lane ^ lane >> 33) * 0xFF51AFD7ED558CCDULL;
    lane = (lane ^ lane >> 33) * 0xC4CEB9FE1A85EC53ULL;
    return lane ^ lane >> 33;
}

static u64 absorbed(u64 lane, u64 word, i32 turn) {
    return rotated(lane + ((word & 0xFFFFFFFF) | 1) * (word >> 32) + word, turn);
}

/* The lanes of a row: all three, or only that of the fingerprint. `keys` has three for each position. */
static void hashed(const Strings *strings, i64 row, const u64 *keys, int all, u64 *lanes) {
    const u8 *at = strings->data + strings->offsets[row];
    i64 left = strings->offsets[row + 1] - strings->offsets[row];
    const u64 *last = keys + (WORDS - 1) * LANES, *key = keys;
    u64 size = (u64)left * GOLDEN;
    u64 hi = size + last[HI], lo = size ^ last[LO], print = size + last[PRINT];
    for (; left > 0; left -= 8, at += 8, key = key + LANES == last ? keys : key + LANES) {
        u64 word = 0;
        if (left >= 8) memcpy(&word, at, 8);
        else for (i64 byte = 0; byte < left; byte++) word |= (u64)at[byte] << (8 * byte);
        if (all) {
            hi = absorbed(hi, word ^ key[HI], 29);
            lo = absorbed(lo, word ^ key[LO], 31);
        }
        print = absorbed(print, word ^ key[PRINT], 29);
    }
    lanes[HI] = mixed(hi), lanes[LO] = mixed(lo), lanes[PRINT] = mixed(print);
}

/* Of each record the hash of its recordId, that of its destinationId and reference, and the fingerprint. */
void hash_records(i64 rows, const Strings *strings, const i64 *times, const u64 *values, const u64 *keys, u64 mask,
                  u64 *id_hi, u64 *id_lo, u64 *key_hi, u64 *key_lo, u64 *fingerprint) {
    enum { ID = 0, DESTINATION = 2, REFERENCE_ = 5 };
    for (i64 row = 0; row < rows; row++) {
        u64 lanes[STRINGS][LANES], print = GOLDEN;
        for (i32 column = 0; column < STRINGS; column++) {
            int all = column == ID || column == DESTINATION || column == REFERENCE_;
            hashed(strings + column, row, keys, all, lanes[column]);
            print = rotated(print, 27) * GOLDEN ^ lanes[column][PRINT];
        }
        print = mixed(rotated(print, 27) * GOLDEN ^ (u64)times[row]);
        print = mixed(rotated(print, 27) * GOLDEN ^ values[2 * row]);
        fingerprint[row] = mixed(rotated(print, 27) * GOLDEN ^ values[2 * row + 1]);
        id_hi[row] = lanes[ID][HI] & mask;
        id_lo[row] = lanes[ID][LO] & mask;
        key_hi[row] = mixed(lanes[DESTINATION][HI] * GOLDEN ^ lanes[REFERENCE_][LO]);
        key_lo[row] = mixed(lanes[DESTINATION][LO] + rotated(lanes[REFERENCE_][HI], 23) * GOLDEN);
    }
}

/* ---- Sorting and searching of hashes ---- */

typedef struct {
    u64 key;
    i64 row;
} Keyed;

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS, PASSES = 6 };

/* Stable, by the digits from number `first` on; false where the pairs end in `other`. */
static int sort_by_digits(i64 rows, Keyed *pairs, Keyed *other, i32 first) {
    i32 counts[PASSES][DIGITS];
    int moved = 0;
    memset(counts, 0, sizeof counts);
    for (i64 row = 0; row < rows; row++)
        for (i32 pass = first; pass < PASSES; pass++) counts[pass][pairs[row].key >> DIGIT_BITS * pass & (DIGITS - 1)]++;
    for (i32 pass = first; pass < PASSES; pass++) {
        i32 *count = counts[pass], sum = 0;
        if (count[pairs[0].key >> DIGIT_BITS * pass & (DIGITS - 1)] == rows) continue; /* all the same */
        for (i32 digit = 0; digit < DIGITS; digit++) {
            i32 begin = sum;
            sum += count[digit], count[digit] = begin;
        }
        for (i64 row = 0; row < rows; row++)
            other[count[pairs[row].key >> DIGIT_BITS * pass & (DIGITS - 1)]++] = pairs[row];
        Keyed *swapped = pairs;
        pairs = other, other = swapped, moved = !moved;
    }
    return !moved;
}

/* Stable, by insertion; false where that takes too long, which leaves equal keys as they stood. */
static int sort_nearly_sorted(i64 rows, Keyed *pairs) {
    i64 left = 4 * rows;
    for (i64 row = 1; row < rows; row++) {
        Keyed pair = pairs[row];
        i64 at = row;
        for (; at > 0 && pairs[at - 1].key > pair.key; at--) {
            pairs[at] = pairs[at - 1];
            left--;
        }
        pairs[at] = pair;
        if (left < 0) return 0;
    }
    return 1;
}

/* The order in which keys ascend, equal ones as they stand; `scratch` has room for two pairs a key. Hashes are sorted
 * by their upper half, which leaves little to do.
 */
void sort_keys(i64 rows, const u64 *keys, i64 *order, Keyed *scratch) {
    Keyed *pairs = scratch, *other = scratch + rows;
    if (!rows) return;
    for (i64 row = 0; row < rows; row++) pairs[row] = (Keyed){keys[row], row};
    if (!sort_by_digits(rows, pairs, other, PASSES / 2)) pairs = other, other = scratch;
    if (!sort_nearly_sorted(rows, pairs) && !sort_by_digits(rows, pairs, other, 0)) pairs = other;
    for (i64 row = 0; row < rows; row++) order[row] = pairs[row].row;
}

/* A run: page p has size[p] hashes, at hi[p] and lo[p]. `filter[p]` says of hashes that they are not on page p; `filter`
 * is NULL where there is none.
 */
typedef struct {
    const u64 *const *hi, *const *lo;
    i64 pages;
    const i64 *size;
    const u64 *first;      /* hash of each page */
    const double *density; /* rows of each page by hash */
    const u64 *const *filter;
} Run;

static i64 within(i64 row, i64 size) { return row < 0 ? 0 : row >= size ? size - 1 : row; }

/* The first of `size` ascending hashes that is not below `wanted`, which is near `guess`. */
static i64 lower_bound(const u64 *hi, i64 size, u64 wanted, i64 guess) {
    i64 low = guess, high = guess, step = 1;
    if (hi[guess] < wanted) {
        for (low++, high = low; high < size && hi[high] < wanted; step *= 2) low = high + 1, high += step;
        if (high > size) high = size;
    } else {
        for (; low > 0 && hi[low - 1] >= wanted; step *= 2) {
            high = low - 1;
            low = low > step ? low - step : 0;
            if (hi[low] < wanted) { low++; break; }
        }
    }
    while (low < high) {
        i64 middle = low + (high - low) / 2;
        if (hi[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The row at which a hash would be if those of its page were at even distances, `size` - 1 at most. */
static i64 even_row(u64 wanted, u64 first, double density, i64 size) {
    double row = wanted < first ? 0 : (double)(wanted - first) * density;
    return row < (double)size ? (i64)row : size - 1;
}

/* A filter has a word of 64 bits for four rows, and in that of the even row of a hash five bits set, each of which 6
 * bits of its lower half say. A page of fewer than four hashes has no word.
 */
enum { WORD_ROWS = 4 };

static u64 filter_bits(u64 lo) {
    return (u64)1 << (lo & 63) | (u64)1 << (lo >> 6 & 63) | (u64)1 << (lo >> 12 & 63) | (u64)1 << (lo >> 18 & 63) |
           (u64)1 << (lo >> 24 & 63);
}

static i64 filter_word(i64 even, i64 size) {
    return even / WORD_ROWS < size / WORD_ROWS ? even / WORD_ROWS : size / WORD_ROWS - 1;
}

/* The filter of a page: `out` has two bytes a row and is zero. */
void make_filter(i64 rows, const u64 *hi, const u64 *lo, double density, u64 *out) {
    if (rows < WORD_ROWS) return;
    for (i64 row = 0; row < rows; row++)
        out[filter_word(even_row(hi[row], hi[0], density, rows), rows)] |= filter_bits(lo[row]);
}

/* Where rows are written: as (needle, page, row), only `room` of them. */
typedef struct {
    i64 room, found, *needle, *page, *row;
} Places;

enum { GROUP = 64 };

/* The hashes (`hi` ascends) that may be in a run, by its filters, and their numbers; returns how many. */
static i64 sieve(i64 needles, const u64 *hi, const u64 *lo, const Run *run, u64 *likely_hi, u64 *likely_lo, i64 *which) {
    static const u64 every = ~(u64)0;
    i64 page = 0, likely = 0;
    for (i64 begin = 0; begin < needles; begin += GROUP) {
        i64 many = needles - begin < GROUP ? needles - begin : GROUP;
        const u64 *word[GROUP];
        for (i64 at = 0; at < many;) {
            while (page + 1 < run->pages && run->first[page + 1] <= hi[begin + at]) page++;
            u64 first = run->first[page], last = page + 1 < run->pages ? run->first[page + 1] - 1 : ~(u64)0;
            i64 size = run->size[page];
            const u64 *filter = size < WORD_ROWS ? NULL : run->filter[page];
            double density = run->density[page];
            for (; at < many && hi[begin + at] <= last; at++) {
                word[at] = filter ? filter + filter_word(even_row(hi[begin + at], first, density, size), size) : &every;
                __builtin_prefetch(word[at]);
            }
        }
        for (i64 at = 0; at < many; at++) {
            u64 bits = filter_bits(lo[begin + at]);
            likely_hi[likely] = hi[begin + at], likely_lo[likely] = lo[begin + at], which[likely] = begin + at;
            likely += (*word[at] & bits) == bits;
        }
    }
    return likely;
}

/* Rows of a run with one of the hashes (`hi` ascends), in order of the needles, whose numbers are in `which` (NULL: as
 * they stand); pages are counted from `base`. Memory is slow and hashes are uniform: the places of many are guessed, and
 * asked for, before the first is read.
 */
static void find_in_run(
    i64 needles, const u64 *hi, const u64 *lo, const i64 *which, const Run *run, i64 base, Places *out
) {
    i64 current = 0;
    for (i64 begin = 0; begin < needles; begin += GROUP) {
        i64 many = needles - begin < GROUP ? needles - begin : GROUP;
        i64 of[GROUP], guess[GROUP];
        for (i64 at = 0; at < many; at++) {
            u64 wanted = hi[begin + at];
            while (current + 1 < run->pages && run->first[current + 1] <= wanted) current++;
            of[at] = current;
            guess[at] = even_row(wanted, run->first[current], run->density[current], run->size[current]);
            __builtin_prefetch(run->hi[current] + guess[at]);
        }
        for (i64 at = 0; at < many; at++) {
            const u64 *hashes = run->hi[of[at]];
            double step = (double)(i64)(hi[begin + at] - hashes[guess[at]]) * run->density[of[at]];
            double size = (double)run->size[of[at]];
            guess[at] = within(guess[at] + (i64)(step < -size ? -size : step > size ? size : step), run->size[of[at]]);
            __builtin_prefetch(hashes + guess[at]);
        }
        for (i64 at = 0; at < many; at++) {
            const u64 *hashes = run->hi[of[at]];
            guess[at] = lower_bound(hashes, run->size[of[at]], hi[begin + at], guess[at]);
            if (guess[at] < run->size[of[at]] && hashes[guess[at]] == hi[begin + at])
                __builtin_prefetch(run->lo[of[at]] + guess[at]);
            else guess[at] = -1;
        }
        for (i64 at = 0; at < many; at++) {
            const u64 *hashes = run->hi[of[at]];
            for (i64 next = guess[at]; next >= 0 && next < run->size[of[at]] && hashes[next] == hi[begin + at]; next++) {
                if (run->lo[of[at]][next] != lo[begin + at]) continue;
                if (out->found < out->room) {
                    out->needle[out->found] = which ? which[begin + at] : begin + at;
                    out->page[out->found] = base + of[at], out->row[out->found] = next;
                }
                out->found++;
            }
        }
    }
}

/* Rows of several runs with one of the hashes (`hi` ascends) as (needle, page, row): run by run, in order of the needles;
 * pages are counted through all runs. `scratch` has room for three words a needle. Returns how many there are; only
 * `room` of them are written.
 */
i64 find_hashes(
    i64 needles, const u64 *hi, const u64 *lo, i64 runs, const Run *run, i64 room, i64 *needle, i64 *page, i64 *row,
    u64 *scratch
) {
    Places out = {room, 0, needle, page, row};
    u64 *likely_hi = scratch, *likely_lo = scratch + needles;
    i64 *which = (i64 *)(scratch + 2 * needles), base = 0;
    for (; runs--; base += run->pages, run++) {
        if (!run->pages) continue;
        if (!run->filter) {
            find_in_run(needles, hi, lo, NULL, run, base, &out);
            continue;
        }
        i64 likely = sieve(needles, hi, lo, run, likely_hi, likely_lo, which);
        if (likely) find_in_run(likely, likely_hi, likely_lo, which, run, base, &out);
    }
    return out.found;
}

/* ---- Rows in another order ---- */

enum { AHEAD = 24 };

/* Offsets of rows of a column in another order, `out` with room for rows + 1; returns the bytes of their strings. */
i64 take_offsets(i64 rows, const i64 *order, const i32 *offsets, i32 *out) {
    i64 total = 0;
    out[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        if (row + AHEAD < rows) __builtin_prefetch(offsets + order[row + AHEAD]);
        total += offsets[order[row] + 1] - offsets[order[row]];
        out[row + 1] = (i32)total;
    }
    return total;
}

/* The strings themselves, which `out` has room for. */
void take_strings(i64 rows, const i64 *order, const Strings *strings, u8 *out) {
    for (i64 row = 0; row < rows; row++) {
        i32 at = strings->offsets[order[row]];
        if (row + AHEAD < rows) __builtin_prefetch(strings->data + strings->offsets[order[row + AHEAD]]);
        out = put_bytes(out, strings->data + at, strings->offsets[order[row] + 1] - at);
    }
}

/* ---- Rows of many pages ---- */

/* Words: row[r] of what lies at at[page[r]]. */
void gather_words(i64 rows, const i64 *page, const i64 *row, const u64 *const *at, u64 *out) {
    for (i64 r = 0; r < rows; r++) {
        if (r + AHEAD < rows) __builtin_prefetch(at[page[r + AHEAD]] + row[r + AHEAD]);
        out[r] = at[page[r]][row[r]];
    }
}

/* Offsets of strings, `out` with room for rows + 1; page p has `size[p]` bytes of them. Returns the bytes of all, or -1
 * where the offsets of a page are not within it.
 */
i64 gather_offsets(i64 rows, const i64 *page, const i64 *row, const i32 *const *offsets, const i64 *size, i32 *out) {
    i64 total = 0;
    out[0] = 0;
    for (i64 r = 0; r < rows; r++) {
        if (r + AHEAD < rows) __builtin_prefetch(offsets[page[r + AHEAD]] + row[r + AHEAD]);
        i64 begin = offsets[page[r]][row[r]], end = offsets[page[r]][row[r] + 1];
        if (begin < 0 || end < begin || end > size[page[r]]) return -1;
        total += end - begin;
        if (total > INT32_MAX) return -1;
        out[r + 1] = (i32)total;
    }
    return total;
}

/* The strings themselves, which `out` has room for. */
void gather_strings(
    i64 rows, const i64 *page, const i64 *row, const i32 *const *offsets, const u8 *const *data, u8 *out
) {
    for (i64 r = 0; r < rows; r++) {
        i32 begin = offsets[page[r]][row[r]];
        out = put_bytes(out, data[page[r]] + begin, offsets[page[r]][row[r] + 1] - begin);
    }
}

/* ---- Summaries in few bytes ---- */

/* Packed (docs/formats.md, "Summary runs"): a header of four bytes, of each number the bytes that it has, the unit. */
enum { HEADER = 4, NUMBERS = 6, PACKED = 80 }; /* at most beside the unit, with what is written too far */

/* The columns; sums are decimals. */
typedef struct {
    i64 *count;
    u64 *positive, *negative;
    i64 *first, *last, *last_seq;
} Sums;

/* How many bytes a number has, in half a byte: 15 stands for 16. */
static i32 width_of(u128 number) {
    u64 high = (u64)(number >> 64), low = (u64)number;
    i32 bytes = high ? 16 - (__builtin_clzll(high) >> 3) : low ? 8 - (__builtin_clzll(low) >> 3) : 0;
    return bytes < 15 ? bytes : 15;
}

/* 0, -1, 1, -2, … as 0, 1, 2, 3, … */
static u128 zigzag(const u64 *words, i64 row) {
    i128 value = decimal_at(words, row);
    return (u128)value << 1 ^ (u128)(value >> 127);
}

static void put_unzigzagged(u64 *words, i64 row, u128 number) {
    u128 value = number >> 1 ^ (u128)-(i128)(number & 1);
    words[2 * row] = (u64)value, words[2 * row + 1] = (u64)(value >> 64);
}

/* `out` has room for `PACKED` bytes a row and all units, `offsets` for rows + 1. Returns the bytes of all, or -1 where a
 * unit has more than 255.
 */
i64 pack_summaries(i64 rows, const Strings *unit, const Sums *sums, u8 *out, i32 *offsets) {
    u8 *begin = out;
    offsets[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        i32 at = unit->offsets[row], length = unit->offsets[row + 1] - at, width[NUMBERS];
        u64 first = (u64)sums->first[row];
        if (length > 255) return -1;
        u128 number[NUMBERS] = {
            (u64)sums->count[row], zigzag(sums->positive, row), zigzag(sums->negative, row),
            first, (u64)sums->last[row] - first, (u64)sums->last_seq[row],
        };
        for (i32 each = 0; each < NUMBERS; each++) width[each] = width_of(number[each]);
        *out++ = (u8)length;
        for (i32 each = 0; each < NUMBERS; each += 2) *out++ = (u8)(width[each] | width[each + 1] << 4);
        for (i32 each = 0; each < NUMBERS; each++) {
            memcpy(out, &number[each], 16); /* what is too much is written over */
            out += width[each] < 15 ? width[each] : 16;
        }
        out = put_bytes(out, unit->data + at, length);
        offsets[row + 1] = (i32)(out - begin);
    }
    return out - begin;
}

static u128 number_at(const u8 *at, const u8 *end, i32 width) {
    u128 number = 0;
    if (end - at < 16) {
        memcpy(&number, at, (size_t)width);
    } else if (width) {
        memcpy(&number, at, 16);
        number &= ~(u128)0 >> 8 * (16 - width);
    }
    return number;
}

/* The columns again, of what is packed in so many bytes; `data` has `room`, `offsets` for rows + 1. Returns the bytes of
 * all units, or -1 where a row is not one that was packed.
 */
i64 unpack_summaries(
    i64 rows, const Strings *packed, i64 bytes, const Sums *sums, i64 room, u8 *data, i32 *offsets
) {
    const u8 *end = packed->data + bytes;
    u8 *begin = data;
    offsets[0] = 0;
    for (i64 row = 0; row < rows; row++) {
        i64 from = packed->offsets[row], length = packed->offsets[row + 1] - from, used = HEADER;
        const u8 *at;
        i32 width[NUMBERS];
        u128 number[NUMBERS];
        if (from < 0 || length < HEADER || from + length > bytes) return -1;
        at = packed->data + from;
        for (i32 each = 0; each < NUMBERS; each++) {
            width[each] = at[1 + each / 2] >> 4 * (each % 2) & 15;
            if (width[each] > 8 && each != 1 && each != 2) return -1;
            if (width[each] == 15) width[each] = 16;
            used += width[each];
        }
        if (used + at[0] != length || data - begin + at[0] > room) return -1;
        at += HEADER;
        for (i32 each = 0; each < NUMBERS; each++) {
            number[each] = number_at(at, end, width[each]);
            at += width[each];
        }
        sums->count[row] = (i64)number[0];
        put_unzigzagged(sums->positive, row, number[1]), put_unzigzagged(sums->negative, row, number[2]);
        sums->first[row] = (i64)number[3], sums->last[row] = (i64)((u64)number[3] + (u64)number[4]);
        sums->last_seq[row] = (i64)number[5];
        data = put_bytes(data, at, length - used);
        offsets[row + 1] = (i32)(data - begin);
    }
    return data - begin;
}
