/* Attention over paged memory on CPU, float32: decodes and prefill chunks, grouped-query, sliding window, softcap, sinks.
 *
 *   keys    [kv_heads][slot][key_dim]        slot = block * block_size + position in the block
 *   values  [kv_heads][slot][value_dim]
 *   query   [heads][token] with strides      out [token][heads][value_dim]
 *
 * A task is one tile of queries of one sequence under one KV head. All query heads that share the KV head are rows of the
 * tile, so each key and value is loaded once for all of them. The softmax runs over passes of PASS keys with a running
 * maximum; passes begin at multiples of PASS in the sequence. Every sum has a fixed order that depends on the query's
 * position alone: neighbours, thread count, and where chunks and tiles begin change no bit.
 * Tasks of one KV head come together, so blocks shared by several sequences stay in the processor's cache.
 */
#include <math.h>
#include <stdint.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

enum { LANES = 8, PASS = 64, MAX_ROWS = 32, MAX_DIM = 512 };

typedef float vec __attribute__((vector_size(32)));
typedef float quad __attribute__((vector_size(16)));
typedef float loose __attribute__((vector_size(32), aligned(4), may_alias)); /* the same, anywhere in memory */
typedef int32_t ivec __attribute__((vector_size(32)));

typedef struct {
    const int32_t *tables;       /* [chunks][table_width] */
    const int64_t *starts;       /* [chunks] position of the chunk's first query */
    const int64_t *offsets;      /* [chunks] its column in the packed row */
    const int64_t *first_blocks; /* [chunks] absolute index of the first entry of its table */
    const int32_t *tiles;        /* [num_tiles][3]: chunk, first query of the tile, number of queries */
    int64_t table_width, num_tiles, block_size, window; /* window 0: full attention */
} Step;

typedef struct {
    const float *query, *keys, *values, *sinks; /* sinks may be null */
    float *out;
    int64_t query_head_stride, query_token_stride; /* in floats */
    int64_t num_slots, heads, kv_heads, key_dim, value_dim;
    float scale, softcap; /* softcap 0: none */
    int32_t threads;
} Layer;

static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }
static inline vec load(const float *p) { return *(const loose *)p; }
static inline void store(float *p, vec x) { *(loose *)p = x; }
/* a * b + c, rounded once where the processor can. Written out: left to the compiler, one unrolled loop would have it and
 * another not, and a row's bits would depend on its place in the tile. */
static inline vec mul_add(vec a, vec b, vec c) {
#ifdef __FMA__
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vec larger(vec a, vec b) { return (vec)(((ivec)a & (a > b)) | ((ivec)b & ~(a > b))); }

static inline float sum(vec x) {
    const union { vec whole; quad half[2]; } both = {x};
    const quad q = both.half[0] + both.half[1];
    return (q[0] + q[2]) + (q[1] + q[3]);
}

static inline float highest(vec x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* exp(x) for x <= 88; not a number stays so. Cephes' polynomial, 2 units in the last place. */
static inline vec exponential(vec x) {
    const vec low = splat(-87.0f), magic = splat(12582912.0f);
    const ivec below = x < low;
    x = (vec)(((ivec)low & below) | ((ivec)x & ~below));
    const vec shifted = mul_add(x, splat(1.44269504f), magic);
    const vec n = shifted - magic;
    const vec r = mul_add(n, splat(2.12194440e-4f), mul_add(n, splat(-0.693359375f), x));
    vec p = splat(1.9875691500e-4f);
    p = mul_add(p, r, splat(1.3981999507e-3f));
    p = mul_add(p, r, splat(8.3334519073e-3f));
    p = mul_add(p, r, splat(4.1665795894e-2f));
    p = mul_add(p, r, splat(1.6666665459e-1f));
    p = mul_add(p, r, splat(5.0000001201e-1f));
    p = mul_add(p * r, r, r) + 1.0f;
    const ivec exponent = ((ivec)shifted - (ivec)magic + 127) << 23;
    return p * (vec)exponent;
}

/* scores[r][0..3] = query[r] . keys[0..3], for `rows` query rows at once. */
static inline __attribute__((always_inline)) void
score_four(const int rows, const float *query, int64_t dim, const float *const *keys, float *scores) {
    vec a[3][4] = {0};
    for (int64_t d = 0; d < dim; d += LANES) {
        vec q[3];
        for (int r = 0; r < rows; r++) q[r] = load(query + r * dim + d);
        for (int i = 0; i < 4; i++) {
            const vec k = load(keys[i] + d);
            for (int r = 0; r < rows; r++) a[r][i] = mul_add(q[r], k, a[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) scores[r * PASS + i] = sum(a[r][i]);
}

static void score_pass(int rows, const float *query, int64_t dim, const float *const *keys, int from, int count,
                       float *scores) {
    for (int i = from - from % 4; i < count; i += 4) {
        int r = 0;
        for (; r + 3 <= rows; r += 3) score_four(3, query + r * dim, dim, keys + i, scores + r * PASS + i);
        if (rows - r == 2) score_four(2, query + r * dim, dim, keys + i, scores + r * PASS + i);
        if (rows - r == 1) score_four(1, query + r * dim, dim, keys + i, scores + r * PASS + i);
    }
}

/* out[r][0 .. 8 * vectors] += sum over keys from .. count of weights[r][i] * values[i] */
static inline __attribute__((always_inline)) void
add_strip(const int rows, const int vectors, const float *weights, const float *const *values, int64_t column, int from,
          int count, float *out, int64_t dim) {
    vec a[3][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) a[r][j] = load(out + r * dim + column + j * LANES);
    for (int i = from; i < count; i++) {
        const float *value = values[i] + column;
        for (int j = 0; j < vectors; j++) {
            const vec v = load(value + j * LANES);
            for (int r = 0; r < rows; r++) a[r][j] = mul_add(splat(weights[r * PASS + i]), v, a[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < vectors; j++) store(out + r * dim + column + j * LANES, a[r][j]);
}

static inline __attribute__((always_inline)) void
add_rows(const int rows, const float *weights, const float *const *values, int from, int count, float *out,
         int64_t dim) {
    int64_t column = 0;
    for (; column + 4 * LANES <= dim; column += 4 * LANES)
        add_strip(rows, 4, weights, values, column, from, count, out, dim);
    for (; column < dim; column += LANES) add_strip(rows, 1, weights, values, column, from, count, out, dim);
}

static void add_pass(int rows, const float *weights, const float *const *values, int from, int count, float *out,
                     int64_t dim) {
    int r = 0;
    for (; r + 3 <= rows; r += 3) add_rows(3, weights + r * PASS, values, from, count, out + r * dim, dim);
    if (rows - r == 2) add_rows(2, weights + r * PASS, values, from, count, out + r * dim, dim);
    if (rows - r == 1) add_rows(1, weights + r * PASS, values, from, count, out + r * dim, dim);
}

/* Turn the scores [from, to) of one row into weights, everything else into zeros; returns their sum. The running maximum
 * moves to the new one, and `shrink` is what the row's earlier sums must be multiplied by. */
static float soften(float *scores, int from, int to, float softcap, float *maximum, float *shrink) {
    for (int i = 0; i < from; i++) scores[i] = -INFINITY;
    for (int i = to; i < PASS; i++) scores[i] = -INFINITY;
    vec top = splat(*maximum);
    for (int i = 0; i < PASS; i += LANES) {
        vec s = load(scores + i);
        if (softcap != 0.0f) { /* tanh(x) = 1 - 2 / (exp(2 x) + 1); beyond 40 it is 1 in float32 */
            vec x = s * (2.0f / softcap);
            const ivec above = x > splat(80.0f);
            x = (vec)(((ivec)splat(80.0f) & above) | ((ivec)x & ~above));
            s = softcap * (1.0f - 2.0f / (exponential(x) + 1.0f));
            store(scores + i, s);
        }
        top = larger(s, top);
    }
    if (softcap != 0.0f) { /* the cap has made the hidden ones finite */
        for (int i = 0; i < from; i++) scores[i] = -INFINITY;
        for (int i = to; i < PASS; i++) scores[i] = -INFINITY;
        top = splat(*maximum);
        for (int i = 0; i < PASS; i += LANES) top = larger(load(scores + i), top);
    }
    const float best = highest(top);
    *shrink = exponential(splat(*maximum - best))[0];
    *maximum = best;
    vec total = {0};
    for (int i = 0; i < PASS; i += LANES) {
        const vec p = exponential(load(scores + i) - best);
        store(scores + i, p);
        if (i >= from && i + LANES <= to) total += p;
    }
    for (int i = 0; i < from; i++) scores[i] = 0.0f;
    for (int i = to; i < PASS; i++) scores[i] = 0.0f;
    for (int i = 0; i < PASS; i += LANES)
        if (!(i >= from && i + LANES <= to)) total += load(scores + i);
    return sum(total);
}

static void attend_tile(const Step *step, const Layer *layer, const int32_t *tile, int64_t kv_head) {
    const int64_t chunk = tile[0], group = layer->heads / layer->kv_heads;
    const int64_t key_dim = layer->key_dim, value_dim = layer->value_dim, size = step->block_size;
    const int32_t queries = tile[2];
    const int rows = (int)(queries * group);
    const int64_t first = step->starts[chunk] + tile[1], last = first + queries - 1;
    const int32_t *table = step->tables + chunk * step->table_width;
    const float *all_keys = layer->keys + kv_head * layer->num_slots * key_dim;
    const float *all_values = layer->values + kv_head * layer->num_slots * value_dim;
    const int64_t column = step->offsets[chunk] + tile[1];

    float query[MAX_ROWS * key_dim], out[MAX_ROWS * value_dim], scores[MAX_ROWS * PASS];
    float maximum[MAX_ROWS], total[MAX_ROWS];
    const float *keys[PASS], *values[PASS];

    for (int r = 0; r < rows; r++) {
        const int64_t head = kv_head * group + r % group;
        const float *source = layer->query + head * layer->query_head_stride + (column + r / group) * layer->query_token_stride;
        for (int64_t d = 0; d < key_dim; d++) query[r * key_dim + d] = source[d] * layer->scale;
        for (int64_t d = 0; d < value_dim; d++) out[r * value_dim + d] = 0.0f;
        maximum[r] = layer->sinks ? layer->sinks[head] : -INFINITY;
        total[r] = layer->sinks ? 1.0f : 0.0f;
    }

    int64_t from = 0;
    if (step->window && first - step->window + 1 > 0) from = first - step->window + 1;
    for (int64_t base = from - from % PASS; base <= last; base += PASS) {
        const int count = (int)(last + 1 - base < PASS ? last + 1 - base : PASS);
        const int head = base < from ? (int)(from - base) : 0; /* nothing of the tile sees what comes before */
        for (int i = head; i < count;) {
            const int64_t position = base + i, within = position % size;
            const int64_t slot = (int64_t)table[position / size - step->first_blocks[chunk]] * size + within;
            for (int64_t j = 0; j < size - within && i < count; j++, i++) {
                keys[i] = all_keys + (slot + j) * key_dim;
                values[i] = all_values + (slot + j) * value_dim;
            }
        }
        for (int i = head - head % 4; i < head; i++) keys[i] = keys[head];
        for (int i = count; i % 4; i++) keys[i] = keys[count - 1];
        score_pass(rows, query, key_dim, keys, head, count, scores);
        for (int r = 0; r < rows; r++) {
            const int64_t position = first + r / group;
            int64_t begin = step->window ? position - step->window + 1 - base : 0, end = position + 1 - base;
            begin = begin < 0 ? 0 : begin;
            end = end > count ? count : end;
            if (begin >= end) { /* this query sees nothing of this pass */
                for (int i = 0; i < PASS; i++) scores[r * PASS + i] = 0.0f;
                continue;
            }
            float shrink;
            const float part = soften(scores + r * PASS, (int)begin, (int)end, layer->softcap, &maximum[r], &shrink);
            total[r] = total[r] * shrink + part;
            if (shrink != 1.0f)
                for (int64_t d = 0; d < value_dim; d++) out[r * value_dim + d] *= shrink;
        }
        add_pass(rows, scores, values, head, count, out, value_dim);
    }
    for (int r = 0; r < rows; r++) {
        const int64_t head = kv_head * group + r % group;
        float *target = layer->out + ((column + r / group) * layer->heads + head) * value_dim;
        const float inverse = 1.0f / total[r];
        for (int64_t d = 0; d < value_dim; d++) target[d] = out[r * value_dim + d] * inverse;
    }
}

void nightmill_attend(const Step *step, const Layer *layer) {
    const int64_t tasks = step->num_tiles * layer->kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(layer->threads)
    for (int64_t task = 0; task < tasks; task++)
        attend_tile(step, layer, step->tiles + 3 * (task % step->num_tiles), task / step->num_tiles);
}

/* One tile of logits of each row into its running maximum, the token that has it, and the sum of exp(logit - maximum).
 * The first of equal logits wins. */
void nightmill_pick(const float *logits, int64_t rows, int64_t columns, int64_t stride, int64_t first_column,
                    float *maximum, int64_t *token, float *total, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = logits + r * stride;
        const int64_t whole = columns - columns % LANES;
        vec top = splat(-INFINITY), sums = {0};
        ivec bad = {0};
        for (int64_t i = 0; i < whole; i += LANES) {
            const vec x = load(row + i);
            bad |= x != x;
            top = larger(x, top);
        }
        float best = highest(top), part = 0.0f;
        for (int64_t i = whole; i < columns; i++) best = row[i] > best ? row[i] : best;
        const float peak = best > maximum[r] ? best : maximum[r];
        for (int64_t i = 0; i < whole; i += LANES) sums += exponential(load(row + i) - peak);
        for (int64_t i = whole; i < columns; i++) part += expf(row[i] - peak);
        for (int i = 0; i < LANES; i++)
            if (bad[i]) part = NAN;
        if (best > maximum[r]) {
            int64_t i = 0;
            while (row[i] != best) i++;
            token[r] = first_column + i;
        }
        total[r] = total[r] * expf(maximum[r] - peak) + sum(sums) + part;
        maximum[r] = peak;
    }
}

/* out = x / sqrt(mean(x^2) + eps) * gain, row by row. Each row is summed in one fixed order, whatever the batch. */
void nightmill_rms_norm(const float *x, int64_t rows, int64_t dim, const float *gain, float eps, float *out,
                        int32_t threads) {
    const int64_t whole = dim - dim % LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * dim;
        float *target = out + r * dim;
        vec squares = {0};
        float rest = 0.0f;
        for (int64_t i = 0; i < whole; i += LANES) {
            const vec v = load(row + i);
            squares = mul_add(v, v, squares);
        }
        for (int64_t i = whole; i < dim; i++) rest += row[i] * row[i];
        const float scale = 1.0f / sqrtf((sum(squares) + rest) / (float)dim + eps);
        for (int64_t i = 0; i < dim; i++) target[i] = row[i] * scale * gain[i];
    }
}
