/* The scores of a row that a token is drawn from, which 10_draw.c does: one token of each row by inverse distribution
 * function, from raw logits, in one call.
 *
 * A row is walked in blocks that stay in the first cache: highest score and sum of exponentials relative to it, for the
 * raw distribution and for the one that is drawn from. Filters are floors: what lies below the highest of them has no
 * weight. A row is one thread's, and its sums have one order, whatever the batch. */

enum { BLOCK = 1024, BINS = 1024, DIGITS = 256 };

/* Halves of a vector, as they are and in double precision: the compiler spills vectors that are wider than registers. */
typedef float narrow __attribute__((vector_size(2 * LANES)));
typedef double wide __attribute__((vector_size(4 * LANES)));

/* Sums in double precision, one for each lane. */
typedef struct { wide low, high; } lane_sums;

typedef struct {
    const float *raw, *scores;   /* the same where nothing is penalised */
    double number;               /* in [0, 1) */
    double top_p;                /* off from 1 on */
    double total;                /* out: log of the sum of exp(raw); not a number where a logit is none or infinite */
    int64_t top_k;               /* off at 0, and below the number of columns */
    int64_t token;               /* out: -1 where nothing can be drawn */
    float temperature, log_min_p; /* -infinity is off */
    float floor;                 /* out: the lowest score that stays */
    int32_t greedy;
} draw_row;

/* What one thread works in. */
typedef struct {
    double *sums, *raw_sums; /* of each block, relative to its highest score */
    float *tops, *maxima;    /* the highest of each block, and of each lane of it; before the division */
    float *kept, *weights;   /* candidates for a border */
    double bins[BINS];
    float rest[BLOCK]; /* the last block, filled up with -infinity */
} draw_room;

/* Scores of a row: (x - shift) / temperature. */
typedef struct {
    const float *row;
    int64_t columns, blocks;
    float shift, temperature;
    float peak; /* highest score */
} draw_scores;

static inline vec weight(vec x) { return (vec)((ivec)exponential(x) & (x >= splat(-87.0f))); }

static inline lane_sums add_lanes(lane_sums sums, vec x) {
    const union { vec whole; narrow half[2]; } halves = {x};
    sums.low += __builtin_convertvector(halves.half[0], wide);
    sums.high += __builtin_convertvector(halves.half[1], wide);
    return sums;
}

static inline double sum_lanes(lane_sums sums) {
    double part[4] = {0};
    for (int i = 0; i < LANES / 2; i++) part[i % 4] += sums.low[i];
    for (int i = 0; i < LANES / 2; i++) part[i % 4] += sums.high[i];
    return (part[0] + part[2]) + (part[1] + part[3]);
}

/* Append the lanes that are chosen; up to LANES numbers behind them are overwritten. */
static inline int64_t keep(float *to, vec x, ivec where) {
#if defined(__AVX512F__)
    const __mmask16 mask = _mm512_test_epi32_mask((__m512i)where, (__m512i)where);
    if (mask) store(to, (vec)_mm512_maskz_compress_ps(mask, (__m512)x));
    return __builtin_popcount(mask);
#else
    int64_t n = 0;
    for (int i = 0; i < LANES; i++) {
        to[n] = x[i];
        n -= where[i];
    }
    return n;
#endif
}

static inline const float *block_of(const float *row, int64_t columns, int64_t b, draw_room *m) {
    const int64_t begin = b * BLOCK, count = columns - begin;
    if (count >= BLOCK) return row + begin;
    for (int64_t i = 0; i < BLOCK; i++) m->rest[i] = i < count ? row[begin + i] : -INFINITY;
    return m->rest;
}

static inline float score_of(const draw_scores *s, float x) { return (x - s->shift) / s->temperature; }

/* Sum of exp(score - top) over the scores of a block that are not below the floor. */
static inline double block_sum(const float *block, float shift, float temperature, float top, float floor) {
    if (!(top >= -FLT_MAX)) return 0.0;
    lane_sums sums = {{0}, {0}};
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        const vec x = (load(block + i) - shift) / temperature;
        sums = add_lanes(sums, (vec)((ivec)weight(x - top) & (x >= splat(floor))));
    }
    return sum_lanes(sums);
}

/* The maxima of a row and, where wanted, its sums. Returns the highest score before the division, or not a number. */
static float survey(const float *row, int64_t columns, int want_raw, float temperature, draw_room *m) {
    float peak = -INFINITY;
    ivec bad = {0};
    for (int64_t b = 0; b * BLOCK < columns; b++) {
        const float *block = block_of(row, columns, b, m);
        vec top = splat(-INFINITY);
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            const vec x = load(block + i);
            bad |= x != x;
            top = larger(x, top);
        }
        store(m->maxima + b * LANES, top);
        const float best = m->tops[b] = highest(top);
        peak = best > peak ? best : peak;
        if (want_raw) m->raw_sums[b] = block_sum(block, 0.0f, 1.0f, best, -INFINITY);
        if (temperature == 1.0f && want_raw)
            m->sums[b] = m->raw_sums[b];
        else if (temperature > 0.0f)
            m->sums[b] = block_sum(block, 0.0f, temperature, best / temperature, -INFINITY);
    }
    return any(bad) ? NAN : peak;
}

/* The sum over a row, of sums that are each relative to the highest score of its block. */
static double joined(double *sums, const draw_scores *s, const draw_room *m) {
    double total = 0.0;
    for (int64_t b = 0; b < s->blocks; b++) {
        if (sums[b] > 0.0) sums[b] *= exp((double)score_of(s, m->tops[b]) - s->peak);
        total += sums[b];
    }
    return total;
}

/* The sums of what is not below the floor, once more. */
static double sums_above(float floor, const draw_scores *s, draw_room *m) {
    for (int64_t b = 0; b < s->blocks; b++) {
        const float top = score_of(s, m->tops[b]);
        const int none = top < floor;
        m->sums[b] = none ? 0.0 : block_sum(block_of(s->row, s->columns, b, m), s->shift, s->temperature, top, floor);
    }
    return joined(m->sums, s, m);
}

/* Gather the scores that are not below `lowest`; returns how many. */
static int64_t gather(float lowest, const draw_scores *s, draw_room *m) {
    int64_t n = 0;
    for (int64_t b = 0; b < s->blocks; b++) {
        if (score_of(s, m->tops[b]) < lowest) continue;
        const float *block = block_of(s->row, s->columns, b, m);
        const int64_t count = s->columns - b * BLOCK < BLOCK ? s->columns - b * BLOCK : BLOCK;
        for (int64_t i = 0; i < count; i += LANES) {
            const vec x = (load(block + i) - s->shift) / s->temperature;
            n += keep(m->kept + n, x, x >= splat(lowest));
        }
    }
    return n;
}
