/* Tiles of many rows: rows are the lanes of vectors, so no sum goes across lanes. Every sum of a row has an order that
 * depends on the row's position alone: neighbours, thread count, and where chunks, tiles and stretches begin change no
 * bit. */
enum { MAX_ROWS = 32, VECTORS = MAX_ROWS / LANES, PAIR = 2 }; /* more than a pair of vectors do not fit the registers */

/* The rows of a tile in the making: one lane each, LANES to a vector. */
typedef struct {
    vec maximum[VECTORS], total[VECTORS];
    ivec position[VECTORS];
    float scores[PASS * MAX_ROWS]; /* [key][row], then their weights */
} Rows;

/* scores[0 .. UNIT][row] = query[row] . keys[0 .. UNIT] */
static inline __attribute__((always_inline)) void
score_unit(const int vectors, const float *query, int64_t dim, const float *const *keys, float *scores) {
    vec a[PAIR][UNIT] = {0};
    for (int64_t d = 0; d < dim; d++)
        for (int i = 0; i < UNIT; i++)
            for (int v = 0; v < vectors; v++)
                a[v][i] = mul_add(load(query + d * MAX_ROWS + v * LANES), splat(keys[i][d]), a[v][i]);
    for (int i = 0; i < UNIT; i++)
        for (int v = 0; v < vectors; v++) store(scores + i * MAX_ROWS + v * LANES, a[v][i]);
}

/* out[column .. column + UNIT][row] += sum over keys [from, count) of weights[key][row] * values[key][column ..] */
static inline __attribute__((always_inline)) void
add_unit(const int vectors, const float *weights, const float *const *values, int64_t column, int from, int count,
         float *out) {
    vec a[PAIR][UNIT];
    for (int i = 0; i < UNIT; i++)
        for (int v = 0; v < vectors; v++) a[v][i] = load(out + (column + i) * MAX_ROWS + v * LANES);
    for (int k = from; k < count; k++) {
        const float *value = values[k] + column;
        for (int i = 0; i < UNIT; i++)
            for (int v = 0; v < vectors; v++)
                a[v][i] = mul_add(load(weights + k * MAX_ROWS + v * LANES), splat(value[i]), a[v][i]);
    }
    for (int i = 0; i < UNIT; i++)
        for (int v = 0; v < vectors; v++) store(out + (column + i) * MAX_ROWS + v * LANES, a[v][i]);
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

static void run_pass(Rows *rows, int vectors, const Step *step, const Layer *layer, const float *query, float *out,
                     const float *const *keys, const float *const *values, int from, int count, int64_t base, int hides) {
    for (int v = 0; v < vectors; v += PAIR)
        for (int i = from - from % UNIT; i < count; i += UNIT) {
            float *scores = rows->scores + i * MAX_ROWS + v * LANES;
            if (vectors - v == 1) score_unit(1, query + v * LANES, layer->key_dim, keys + i, scores);
            else score_unit(PAIR, query + v * LANES, layer->key_dim, keys + i, scores);
        }
    soften(rows, vectors, from, count, base, step->window, hides, layer->softcap, out, layer->value_dim);
    for (int v = 0; v < vectors; v += PAIR)
        for (int64_t column = 0; column < layer->value_dim; column += UNIT) {
            const float *weights = rows->scores + v * LANES;
            if (vectors - v == 1) add_unit(1, weights, values, column, from, count, out + v * LANES);
            else add_unit(PAIR, weights, values, column, from, count, out + v * LANES);
        }
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
