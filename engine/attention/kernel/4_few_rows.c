/* Tiles of few rows, mostly single decodes: a row's dimensions are the lanes of vectors. What counts here is how fast keys
 * and values come from memory. The sums have another order than in tiles of many rows.
 *
 * Where a load takes long and few can be under way at once, as on processors with AVX2 alone, asking ahead brings less than
 * the processor's own prefetching, which runs while memory is read without a pause: there each pass is read through first,
 * keys and values side by side, and computed from the cache. */
enum { FEW_ROWS = 8, HALF = 8, AHEAD = 16 }; /* AHEAD: rows of memory that are on their way; tried 8 to 64 */

#if defined(__AVX2__) && !defined(__AVX512F__)
enum { READS_THROUGH = 1 };
#else
enum { READS_THROUGH = 0 };
#endif

typedef float half __attribute__((vector_size(32)));
typedef float loose_quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef float loose_half __attribute__((vector_size(32), aligned(4), may_alias));

static inline half load_half(const float *p) { return *(const loose_half *)p; }
static inline void store_half(float *p, half x) { *(loose_half *)p = x; }
static inline half splat_half(float x) { return (half){} + x; }
static inline half mul_add_half(half a, half b, half c) {
#ifdef __FMA__
    return (half)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Sums of four vectors; with AVX2 in the order of `sum`. */
static inline quad sum_each(vec a, vec b, vec c, vec d) {
#ifdef __AVX512F__
    const __m512 p = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    const __m512 q = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    const __m512d low = _mm512_unpacklo_pd((__m512d)p, (__m512d)q), high = _mm512_unpackhi_pd((__m512d)p, (__m512d)q);
    const vec all = (vec)_mm512_add_ps((__m512)low, (__m512)high);
    const union { vec whole; quad part[4]; } lanes = {all};
    return (lanes.part[0] + lanes.part[1]) + (lanes.part[2] + lanes.part[3]);
#elif defined(__AVX__)
    const __m256 p = (__m256)a, q = (__m256)b, r = (__m256)c, s = (__m256)d;
    const __m256 halves[2] = {
        _mm256_add_ps(_mm256_permute2f128_ps(p, r, 0x20), _mm256_permute2f128_ps(p, r, 0x31)),
        _mm256_add_ps(_mm256_permute2f128_ps(q, s, 0x20), _mm256_permute2f128_ps(q, s, 0x31)),
    };
    const __m256 all = _mm256_add_ps(_mm256_unpacklo_ps(halves[0], halves[1]), _mm256_unpackhi_ps(halves[0], halves[1]));
    const __m128d low = (__m128d)_mm256_castps256_ps128(all), high = (__m128d)_mm256_extractf128_ps(all, 1);
    return (quad)_mm_unpacklo_pd(low, high) + (quad)_mm_unpackhi_pd(low, high);
#else
    return (quad){sum(a), sum(b), sum(c), sum(d)};
#endif
}

/* A row's last numbers where they fill half a vector. */
static inline vec load_rest(const float *p) {
    vec x = {0};
    for (int j = 0; j < HALF; j++) x[j] = p[j];
    return x;
}

/* The memory that will be needed some way ahead, row by row: a pass's keys, its values, the next pass's keys. Asked for
 * at the pace at which the rows before are worked on, so that there are always some on their way and never too many.
 * Where passes are read through, nothing is asked for. */
typedef struct {
    const float *rows[3 * PASS];
    int count; /* of keys and of values, in whole units */
    int total;
} Stream;

static void open_stream(Stream *stream, const float *const *keys, const float *const *values, int count,
                        const float *const *next_keys, int next_count) {
    const int units = whole_units(count), next = whole_units(next_count);
    memcpy(stream->rows, keys, units * sizeof *keys);
    memcpy(stream->rows + units, values, units * sizeof *values);
    memcpy(stream->rows + 2 * units, next_keys, next * sizeof *next_keys);
    stream->count = units;
    stream->total = 2 * units + next;
}

/* One number of each line of the keys and values [from, count). */
static void read_through(const Stream *stream, int from, int count, int64_t key_dim, int64_t value_dim) {
    const int64_t line = 16, dim = key_dim < value_dim ? key_dim : value_dim;
    int32_t seen = 0;
    for (int i = from; i < count; i++) {
        const loose_int *key = (const loose_int *)stream->rows[i];
        const loose_int *value = (const loose_int *)stream->rows[stream->count + i];
        for (int64_t d = 0; d < dim; d += line) seen |= key[d] | value[d];
        for (int64_t d = dim; d < key_dim; d += line) seen |= key[d];
        for (int64_t d = dim; d < value_dim; d += line) seen |= value[d];
    }
    asm volatile("" : : "r"(seen)); /* or the compiler would leave it out */
}

static inline const float *ahead(const Stream *stream, int i) {
    return stream->rows[i + AHEAD < stream->total ? i + AHEAD : i];
}

/* Whether the work on rows from `row` on asks for what comes later. */
static inline int asks(int row) { return !READS_THROUGH && row == 0; }

/* scores[r][0..3] = query[r] . keys[0..3] */
static inline __attribute__((always_inline)) void
score_four(const int rows, const float *query, int64_t dim, const Stream *stream, int i, int fetch, float *scores) {
    vec a[3][4] = {0};
    const float *keys[4], *later[4];
    for (int k = 0; k < 4; k++) keys[k] = stream->rows[i + k], later[k] = ahead(stream, i + k);
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        vec q[3];
        for (int r = 0; r < rows; r++) q[r] = load(query + r * dim + d);
        for (int k = 0; k < 4; k++) {
            if (fetch) __builtin_prefetch(later[k] + d);
            const vec key = in_register(load(keys[k] + d));
            for (int r = 0; r < rows; r++) a[r][k] = mul_add(q[r], key, a[r][k]);
        }
    }
    if (d < dim)
        for (int k = 0; k < 4; k++) {
            const vec key = load_rest(keys[k] + d);
            for (int r = 0; r < rows; r++) a[r][k] = mul_add(load_rest(query + r * dim + d), key, a[r][k]);
        }
    for (int r = 0; r < rows; r++) *(loose_quad *)(scores + r * PASS) = sum_each(a[r][0], a[r][1], a[r][2], a[r][3]);
}

static void score_pass(int rows, const float *query, int64_t dim, const Stream *stream, int from, float *scores) {
    for (int i = from - from % 4; i < stream->count; i += 4) {
        int r = 0;
        for (; r + 3 <= rows; r += 3) score_four(3, query + r * dim, dim, stream, i, asks(r), scores + r * PASS + i);
        if (rows - r == 2) score_four(2, query + r * dim, dim, stream, i, asks(r), scores + r * PASS + i);
        if (rows - r == 1) score_four(1, query + r * dim, dim, stream, i, asks(r), scores + r * PASS + i);
    }
}

/* out[r][column .. + LANES * wide] += sum over keys [from, to) of weights[r][i] * values[i][column ..] */
static inline __attribute__((always_inline)) void
add_strip(const int rows, const int wide, const float *weights, const Stream *stream, int64_t column, int from, int to,
          int fetch, float *out, int64_t dim) {
    vec a[3][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < wide; j++) a[r][j] = load(out + r * dim + column + j * LANES);
    for (int i = from; i < to; i++) {
        const float *value = stream->rows[stream->count + i] + column, *later = ahead(stream, stream->count + i) + column;
        for (int j = 0; j < wide; j++) {
            if (fetch) __builtin_prefetch(later + j * LANES);
            const vec v = in_register(load(value + j * LANES));
            for (int r = 0; r < rows; r++) a[r][j] = mul_add(splat(weights[r * PASS + i]), v, a[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < wide; j++) store(out + r * dim + column + j * LANES, a[r][j]);
}

static inline void add_rest(int rows, const float *weights, const Stream *stream, int64_t column, int from, int to,
                            float *out, int64_t dim) {
    for (int r = 0; r < rows; r++) {
        half a = load_half(out + r * dim + column);
        for (int i = from; i < to; i++)
            a = mul_add_half(splat_half(weights[r * PASS + i]), load_half(stream->rows[stream->count + i] + column), a);
        store_half(out + r * dim + column, a);
    }
}

static inline __attribute__((always_inline)) void
add_rows(const int rows, const float *weights, const Stream *stream, int from, int to, int fetch, float *out,
         int64_t dim) {
    int64_t column = 0;
    for (; column + 4 * LANES <= dim; column += 4 * LANES)
        add_strip(rows, 4, weights, stream, column, from, to, fetch, out, dim);
    for (; column + LANES <= dim; column += LANES)
        add_strip(rows, 1, weights, stream, column, from, to, fetch, out, dim);
    if (column < dim) add_rest(rows, weights, stream, column, from, to, out, dim);
}

static void add_pass(int rows, const float *weights, const Stream *stream, int from, int count, float *out, int64_t dim) {
    const int part = dim <= 4 * LANES ? PASS : AHEAD; /* strip by strip, so that a value's strips are asked for together */
    for (int i = from; i < count; i += part) {
        const int to = count < i + part ? count : i + part;
        int r = 0;
        for (; r + 3 <= rows; r += 3) add_rows(3, weights + r * PASS, stream, i, to, asks(r), out + r * dim, dim);
        if (rows - r == 2) add_rows(2, weights + r * PASS, stream, i, to, asks(r), out + r * dim, dim);
        if (rows - r == 1) add_rows(1, weights + r * PASS, stream, i, to, asks(r), out + r * dim, dim);
    }
}

/* The keys of a pass that a row sees. */
typedef struct { int begin, end; } Sight;

/* As `add_pass`, but what a row does not see is left out instead of multiplied by 0: see `add_visible`. */
static void add_seen(int rows, const float *weights, const Stream *stream, const Sight *sights, float *out, int64_t dim) {
    for (int r = 0; r < rows; r++)
        add_rows(1, weights + r * PASS, stream, sights[r].begin, sights[r].end, 0, out + r * dim, dim);
}

/* Turn the scores [from, to) of one row into weights, everything else into zeros; returns their sum. The running maximum
 * moves to the new one, and `shrink` is what the row's earlier sums must be multiplied by. */
static float soften_row(float *scores, int from, int to, float softcap, float *maximum, float *shrink) {
    if (softcap != 0.0f)
        for (int i = 0; i < PASS; i += LANES) store(scores + i, capped(load(scores + i), softcap));
    for (int i = 0; i < from; i++) scores[i] = -INFINITY;
    for (int i = to; i < PASS; i++) scores[i] = -INFINITY;
    vec top = splat(*maximum), total = {0};
    for (int i = 0; i < PASS; i += LANES) top = larger(load(scores + i), top);
    const float best = highest(top);
    *shrink = exponential(splat(*maximum - best))[0];
    *maximum = best;
    for (int i = 0; i < PASS; i += LANES) {
        const vec s = load(scores + i), p = choose(s == splat(-INFINITY), splat(0.0f), exponential(s - best));
        store(scores + i, p);
        total += p;
    }
    return sum(total);
}

static void attend_few(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head) {
    const int64_t group = layer->heads / layer->kv_heads, key_dim = layer->key_dim, value_dim = layer->value_dim;
    const int num_rows = (int)(tile->num_members * group);
    float query[FEW_ROWS * key_dim], out[FEW_ROWS * value_dim], scores[FEW_ROWS * PASS];
    float maximum[FEW_ROWS], total[FEW_ROWS];
    Sight sights[FEW_ROWS];
    const float *keys[2][PASS], *values[2][PASS];
    Stream stream;

    for (int r = 0; r < num_rows; r++) {
        const Row row = find_row(step, layer, tile, kv_head, r);
        for (int64_t d = 0; d < key_dim; d++) query[r * key_dim + d] = row.query[d] * layer->scale;
        for (int64_t d = 0; d < value_dim; d++) out[r * value_dim + d] = tile->resumes ? row.out[d] : 0.0f;
        maximum[r] = row.maximum;
        total[r] = row.total;
    }
    int now = 0, from = tile->from % PASS;
    int64_t base = tile->from - from;
    int count = find_pass(step, layer, tile, kv_head, base, from, keys[now], values[now]);
    for (; base < tile->to; base += PASS, now = !now, from = 0) {
        const int next = find_pass(step, layer, tile, kv_head, base + PASS, 0, keys[!now], values[!now]);
        open_stream(&stream, keys[now], values[now], count, keys[!now], next);
        if (READS_THROUGH) read_through(&stream, from, count, key_dim, value_dim);
        score_pass(num_rows, query, key_dim, &stream, from, scores);
        int hides = 0;
        for (int r = 0; r < num_rows; r++) {
            const int64_t position = step->positions[tile->first_member + r / group];
            const int64_t first = step->window ? position - step->window + 1 - base : 0, last = position + 1 - base;
            const int begin = first < from ? from : (int)first, end = last > count ? count : (int)last;
            sights[r] = (Sight){begin, end};
            hides |= begin > from || end < count;
            if (begin >= end) { /* this query sees nothing of this pass */
                for (int i = 0; i < PASS; i++) scores[r * PASS + i] = 0.0f;
                continue;
            }
            float shrink;
            const float part = soften_row(scores + r * PASS, begin, end, layer->softcap, &maximum[r], &shrink);
            total[r] = total[r] * shrink + part;
            if (shrink != 1.0f)
                for (int64_t d = 0; d < value_dim; d++) out[r * value_dim + d] *= shrink;
        }
        if (hides && !are_finite(values[now], value_dim, from, count))
            add_seen(num_rows, scores, &stream, sights, out, value_dim);
        else add_pass(num_rows, scores, &stream, from, count, out, value_dim);
        count = next;
    }
    for (int r = 0; r < num_rows; r++) {
        const Row row = find_row(step, layer, tile, kv_head, r);
        const float factor = tile->suspends ? 1.0f : 1.0f / total[r];
        for (int64_t d = 0; d < value_dim; d++) row.out[d] = out[r * value_dim + d] * factor;
        if (tile->suspends) leave_row(layer, &row, maximum[r], total[r]);
    }
}
