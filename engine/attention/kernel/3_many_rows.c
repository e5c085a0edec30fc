/* Tiles of many rows: rows are the lanes of vectors, so no sum goes across lanes. Every sum of a row has an order that
 * depends on the row's position alone: neighbours, thread count, and where chunks, tiles and stretches begin change no
 * bit. */
enum { MAX_ROWS = 32, VECTORS = MAX_ROWS / LANES, PAIR = 2 };

/* Keys, or columns of values, whose sums stay in registers for a pair of vectors; for one vector they are a unit. */
#ifdef __AVX512F__
enum { ABREAST = 8 }; /* of 32 registers */
#else
enum { ABREAST = 6 }; /* of 16: with 8 every second sum would go through memory */
#endif

/* The rows of a tile in the making: one lane each, LANES to a vector. */
typedef struct {
    vec maximum[VECTORS], total[VECTORS];
    ivec position[VECTORS];
    float scores[PASS * MAX_ROWS]; /* [key][row], then their weights */
} Rows;

/* scores[0 .. width][row] = query[row] . keys[0 .. width] */
static inline __attribute__((always_inline)) void
score_keys(const int vectors, const int width, const float *query, int64_t dim, const float *const *keys, float *scores) {
    vec a[PAIR][UNIT] = {0};
#pragma GCC unroll 4
    for (int64_t d = 0; d < dim; d++)
        for (int i = 0; i < width; i++)
            for (int v = 0; v < vectors; v++)
                a[v][i] = mul_add(load(query + d * MAX_ROWS + v * LANES), splat(keys[i][d]), a[v][i]);
    for (int i = 0; i < width; i++)
        for (int v = 0; v < vectors; v++) store(scores + i * MAX_ROWS + v * LANES, a[v][i]);
}

/* out[0 .. width][row] += sum over keys [from, count) of weights[key][row] * values[key][column .. column + width] */
static inline __attribute__((always_inline)) void
add_columns(const int vectors, const int width, const float *weights, const float *const *values, int64_t column,
            int from, int count, float *out) {
    vec a[PAIR][UNIT];
    for (int i = 0; i < width; i++)
        for (int v = 0; v < vectors; v++) a[v][i] = load(out + i * MAX_ROWS + v * LANES);
#pragma GCC unroll 4
    for (int k = from; k < count; k++) {
        const float *value = values[k] + column;
        for (int i = 0; i < width; i++)
            for (int v = 0; v < vectors; v++)
                a[v][i] = mul_add(load(weights + k * MAX_ROWS + v * LANES), splat(value[i]), a[v][i]);
    }
    for (int i = 0; i < width; i++)
        for (int v = 0; v < vectors; v++) store(out + i * MAX_ROWS + v * LANES, a[v][i]);
}

/* How many keys or columns come next for a pair of vectors, of the `left` that there are: whole units, so 2 at least. */
static inline int abreast(int64_t left) { return left >= ABREAST ? ABREAST : left >= 4 ? 4 : 2; }

/* Scores of the keys [from, to), whole units of them, by one vector of rows or by two. */
static void score_rows(int vectors, const float *query, int64_t dim, const float *const *keys, int from, int to,
                       float *scores) {
    for (int i = from, width; i < to; i += width) {
        float *here = scores + i * MAX_ROWS;
        width = vectors == 1 ? UNIT : abreast(to - i);
        if (vectors == 1) score_keys(1, UNIT, query, dim, keys + i, here);
        else if (width == ABREAST) score_keys(PAIR, ABREAST, query, dim, keys + i, here);
        else if (width == 4) score_keys(PAIR, 4, query, dim, keys + i, here);
        else score_keys(PAIR, 2, query, dim, keys + i, here);
    }
}

static void add_values(int vectors, const float *weights, const float *const *values, int64_t dim, int from, int count,
                       float *out) {
    int width;
    for (int64_t column = 0; column < dim; column += width) {
        float *here = out + column * MAX_ROWS;
        width = vectors == 1 ? UNIT : abreast(dim - column);
        if (vectors == 1) add_columns(1, UNIT, weights, values, column, from, count, here);
        else if (width == ABREAST) add_columns(PAIR, ABREAST, weights, values, column, from, count, here);
        else if (width == 4) add_columns(PAIR, 4, weights, values, column, from, count, here);
        else add_columns(PAIR, 2, weights, values, column, from, count, here);
    }
}

/* Which rows see the key at `position`. */
static inline ivec visible(ivec rows, int32_t position, int64_t window) {
    ivec seen = rows >= splat_int(position);
    if (window) seen &= rows - (int32_t)window < splat_int(position);
    return seen;
}

/* Turn the scores of the keys [from, count) into weights; `out` [dim][row] follows the running maximum. `hides`: some row
 * does not see some of these keys. */
static void soften(Rows *rows, int vectors, int from, int count, int64_t base, int64_t window, int hides, float softcap,
                   float *out, int64_t dim) {
    for (int v = 0; v < vectors; v++) {
        float *scores = rows->scores + v * LANES;
        vec top = rows->maximum[v];
        for (int i = from; i < count; i++) {
            vec s = load(scores + i * MAX_ROWS);
            if (softcap != 0.0f) s = capped(s, softcap);
            if (hides) s = choose(visible(rows->position[v], (int32_t)(base + i), window), s, splat(-INFINITY));
            store(scores + i * MAX_ROWS, s);
            top = larger(s, top);
        }
        const vec shrink = exponential(rows->maximum[v] - top);
        vec part = {0};
        for (int i = from; i < count; i++) {
            vec p = exponential(load(scores + i * MAX_ROWS) - top);
            if (hides) p = choose(visible(rows->position[v], (int32_t)(base + i), window), p, splat(0.0f));
            store(scores + i * MAX_ROWS, p);
            part += p;
        }
        rows->maximum[v] = top;
        rows->total[v] = mul_add(rows->total[v], shrink, part);
        if (any(shrink != splat(1.0f)))
            for (int64_t d = 0; d < dim; d++) {
                float *lanes = out + d * MAX_ROWS + v * LANES;
                store(lanes, load(lanes) * shrink);
            }
    }
}

/* As `add_values`, but what a row does not see is left out instead of multiplied by 0: it may be infinite or no number, and
 * a token would else depend on those behind it that are computed with it. */
static void add_visible(const Rows *rows, int vectors, const float *const *values, int64_t dim, int from, int count,
                        int64_t base, int64_t window, float *out) {
    for (int k = from; k < count; k++)
        for (int v = 0; v < vectors; v++) {
            const ivec seen = visible(rows->position[v], (int32_t)(base + k), window);
            const vec weight = load(rows->scores + k * MAX_ROWS + v * LANES);
            for (int64_t d = 0; d < dim; d++) {
                float *lanes = out + d * MAX_ROWS + v * LANES;
                store(lanes, choose(seen, mul_add(weight, splat(values[k][d]), load(lanes)), load(lanes)));
            }
        }
}

static void run_pass(Rows *rows, int vectors, const Step *step, const Layer *layer, const float *query, float *out,
                     const float *const *keys, const float *const *values, int from, int count, int64_t base, int hides) {
    const int first = from - from % UNIT, last = whole_units(count);
    for (int v = 0; v < vectors; v += PAIR)
        score_rows(vectors - v, query + v * LANES, layer->key_dim, keys, first, last, rows->scores + v * LANES);
    soften(rows, vectors, from, count, base, step->window, hides, layer->softcap, out, layer->value_dim);
    if (hides && !are_finite(values, layer->value_dim, from, count)) {
        add_visible(rows, vectors, values, layer->value_dim, from, count, base, step->window, out);
        return;
    }
    for (int v = 0; v < vectors; v += PAIR)
        add_values(vectors - v, rows->scores + v * LANES, values, layer->value_dim, from, count, out + v * LANES);
}

/* The positions of a tile's rows. */
typedef struct { int32_t lowest, highest; } Range;

/* The rows of a tile, their queries and their sums side by side: [dim][row]. */
static Range begin_rows(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head, int num_rows,
                        int vectors, Rows *rows, float *query, float *out) {
    float maximum[MAX_ROWS] = {0}, total[MAX_ROWS] = {0};
    int32_t position[MAX_ROWS];
    Range range = {INT32_MAX, 0};
    for (int r = 0; r < vectors * LANES; r++) {
        position[r] = -1;
        if (r >= num_rows) { /* a lane without a row */
            for (int64_t d = 0; d < layer->key_dim; d++) query[d * MAX_ROWS + r] = 0.0f;
            for (int64_t d = 0; d < layer->value_dim; d++) out[d * MAX_ROWS + r] = 0.0f;
            continue;
        }
        const Row row = find_row(step, layer, tile, kv_head, r);
        for (int64_t d = 0; d < layer->key_dim; d++) query[d * MAX_ROWS + r] = row.query[d] * layer->scale;
        for (int64_t d = 0; d < layer->value_dim; d++) out[d * MAX_ROWS + r] = tile->resumes ? row.out[d] : 0.0f;
        maximum[r] = row.maximum;
        total[r] = row.total;
        position[r] = row.position;
        range.lowest = row.position < range.lowest ? row.position : range.lowest;
        range.highest = row.position > range.highest ? row.position : range.highest;
    }
    for (int v = 0; v < vectors; v++) {
        rows->maximum[v] = load(maximum + v * LANES);
        rows->total[v] = load(total + v * LANES);
        rows->position[v] = (ivec)load((const float *)(position + v * LANES));
    }
    return range;
}

static void end_rows(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head, int num_rows,
                     const Rows *rows, const float *out) {
    for (int r = 0; r < num_rows; r++) {
        const Row row = find_row(step, layer, tile, kv_head, r);
        const float maximum = rows->maximum[r / LANES][r % LANES], total = rows->total[r / LANES][r % LANES];
        const float factor = tile->suspends ? 1.0f : 1.0f / total;
        for (int64_t d = 0; d < layer->value_dim; d++) row.out[d] = out[d * MAX_ROWS + r] * factor;
        if (tile->suspends) leave_row(layer, &row, maximum, total);
    }
}

static void attend_many(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head) {
    const int num_rows = (int)(tile->num_members * (layer->heads / layer->kv_heads));
    const int vectors = (num_rows + LANES - 1) / LANES;
    float query[MAX_ROWS * layer->key_dim] __attribute__((aligned(64)));
    float out[MAX_ROWS * layer->value_dim] __attribute__((aligned(64)));
    const float *keys[PASS], *values[PASS];
    Rows rows;

    const Range range = begin_rows(step, layer, tile, kv_head, num_rows, vectors, &rows, query, out);
    for (int64_t base = tile->from - tile->from % PASS; base < tile->to; base += PASS) {
        const int from = base < tile->from ? (int)(tile->from - base) : 0;
        const int count = find_pass(step, layer, tile, kv_head, base, from, keys, values);
        const int hides = base + count - 1 > range.lowest || (step->window && base + from <= range.highest - step->window);
        run_pass(&rows, vectors, step, layer, query, out, keys, values, from, count, base, hides);
    }
    end_rows(step, layer, tile, kv_head, num_rows, &rows, out);
}
