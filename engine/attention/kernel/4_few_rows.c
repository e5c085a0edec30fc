/* Tiles of few rows, mostly single decodes: a row's dimensions are the lanes of vectors. What counts here is how fast keys
 * and values come from memory. The sums have another order than in tiles of many rows. */
enum { FEW_ROWS = 8, HALF = 8 };

typedef float half __attribute__((vector_size(32)));
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

static inline float sum_half(half x) {
    const union { half whole; quad part[2]; } both = {x};
    const quad q = both.part[0] + both.part[1];
    return (q[0] + q[2]) + (q[1] + q[3]);
}

/* scores[r][0..3] = query[r] . keys[0..3] */
static inline __attribute__((always_inline)) void
score_four(const int rows, const float *query, int64_t dim, const float *const *keys, float *scores) {
    half a[3][4] = {0};
    for (int64_t d = 0; d < dim; d += HALF) {
        half q[3];
        for (int r = 0; r < rows; r++) q[r] = load_half(query + r * dim + d);
        for (int i = 0; i < 4; i++) {
            const half k = load_half(keys[i] + d);
            for (int r = 0; r < rows; r++) a[r][i] = mul_add_half(q[r], k, a[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) scores[r * PASS + i] = sum_half(a[r][i]);
}

/* Asks for four rows of memory, to be there when their turn comes. */
static inline void fetch_four(const float *const *rows, int64_t dim) {
    for (int i = 0; i < 4; i++)
        for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(rows[i] + d);
}

/* Meanwhile the pass's values come from memory. */
static void score_pass(int rows, const float *query, int64_t dim, const float *const *keys, int from, int count,
                       float *scores, const float *const *values, int64_t value_dim) {
    for (int i = from - from % 4; i < count; i += 4) {
        fetch_four(values + i, value_dim);
        int r = 0;
        for (; r + 3 <= rows; r += 3) score_four(3, query + r * dim, dim, keys + i, scores + r * PASS + i);
        if (rows - r == 2) score_four(2, query + r * dim, dim, keys + i, scores + r * PASS + i);
        if (rows - r == 1) score_four(1, query + r * dim, dim, keys + i, scores + r * PASS + i);
    }
}

/* out[r][column .. + 8 * halves] += sum over keys [from, count) of weights[r][i] * values[i][column ..] */
static inline __attribute__((always_inline)) void
add_strip(const int rows, const int halves, const float *weights, const float *const *values, int64_t column, int from,
          int count, float *out, int64_t dim) {
    half a[3][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < halves; j++) a[r][j] = load_half(out + r * dim + column + j * HALF);
    for (int i = from; i < count; i++) {
        const float *value = values[i] + column;
        for (int j = 0; j < halves; j++) {
            const half v = load_half(value + j * HALF);
            for (int r = 0; r < rows; r++) a[r][j] = mul_add_half(splat_half(weights[r * PASS + i]), v, a[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < halves; j++) store_half(out + r * dim + column + j * HALF, a[r][j]);
}

static inline __attribute__((always_inline)) void
add_rows(const int rows, const float *weights, const float *const *values, int from, int count, float *out,
         int64_t dim) {
    int64_t column = 0;
    for (; column + 4 * HALF <= dim; column += 4 * HALF)
        add_strip(rows, 4, weights, values, column, from, count, out, dim);
    for (; column < dim; column += HALF) add_strip(rows, 1, weights, values, column, from, count, out, dim);
}

/* Meanwhile the next pass's keys come from memory. */
static void add_pass(int rows, const float *weights, const float *const *values, int from, int count, float *out,
                     int64_t dim, const float *const *next_keys, int next_count, int64_t key_dim) {
    int r = 0;
    for (int i = 0; i + 4 <= next_count; i += 4) fetch_four(next_keys + i, key_dim);
    for (; r + 3 <= rows; r += 3) add_rows(3, weights + r * PASS, values, from, count, out + r * dim, dim);
    if (rows - r == 2) add_rows(2, weights + r * PASS, values, from, count, out + r * dim, dim);
    if (rows - r == 1) add_rows(1, weights + r * PASS, values, from, count, out + r * dim, dim);
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
    const float *keys[2][PASS], *values[2][PASS];

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
        score_pass(num_rows, query, key_dim, keys[now], from, count, scores, values[now], value_dim);
        for (int r = 0; r < num_rows; r++) {
            const int64_t position = step->positions[tile->first_member + r / group];
            const int64_t first = step->window ? position - step->window + 1 - base : 0, last = position + 1 - base;
            const int begin = first < from ? from : (int)first, end = last > count ? count : (int)last;
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
        add_pass(num_rows, scores, values[now], from, count, out, value_dim, keys[!now], next, key_dim);
        count = next;
    }
    for (int r = 0; r < num_rows; r++) {
        const Row row = find_row(step, layer, tile, kv_head, r);
        const float factor = tile->suspends ? 1.0f : 1.0f / total[r];
        for (int64_t d = 0; d < value_dim; d++) row.out[d] = out[r * value_dim + d] * factor;
        if (tile->suspends) leave_row(layer, &row, maximum[r], total[r]);
    }
}
