/* Floors of a row's scores, and the draw. A border (the k-th score, the score that reaches a mass) is found without
 * sorting, by counting in bins. */
#include <omp.h>

/* The highest bin with which the sum from above reaches the goal, which is lowered by the sum before it; else `count`.
 * Nothing is in a bin of zero. */
static int64_t reaching(const double *bins, int64_t count, double *goal, int64_t *lowest) {
    double above = 0.0;
    for (int64_t b = 0; b < count; b++) {
        if (bins[b] <= 0.0) continue;
        *lowest = b;
        if (above + bins[b] >= *goal) {
            *goal -= above;
            return b;
        }
        above += bins[b];
    }
    *goal = INFINITY;
    return count;
}

/* 0 is the highest. Later digits tell apart what earlier ones do not. */
static inline int64_t digit(float x, int shift) {
    union { float number; uint32_t bits; } u = {x};
    const uint32_t key = u.bits & 0x80000000u ? u.bits : ~u.bits & 0x7fffffffu; /* in descending order */
    return key >> shift & (DIGITS - 1);
}

static inline ivec bins_of(vec x, float high, float scale) {
    const vec last = splat(BINS - 1), place = (high - x) * scale;
    return __builtin_convertvector(choose(place < last, place, last), ivec);
}

/* The highest score among the first n kept ones, with which the sum of their weights from above reaches the goal;
 * -infinity where it does not. Bins of equal width from `high` to `high - range` first, what lies deeper in the last;
 * then the digits of those in the one that is hit. */
static float border(int64_t n, double goal, float high, float range, draw_room *m) {
    const float wanted = BINS / range, scale = wanted < FLT_MAX ? wanted : FLT_MAX;
    int64_t lowest = 0, left = 0;
    for (int64_t i = 0; i < BINS; i++) m->bins[i] = 0.0;
    for (int64_t i = n; i < n + LANES; i++) m->kept[i] = high, m->weights[i] = 0.0f;
    for (int64_t i = 0; i < n; i += LANES) {
        const ivec bins = bins_of(load(m->kept + i), high, scale);
        for (int l = 0; l < LANES; l++) m->bins[bins[l]] += m->weights[i + l];
    }
    const int64_t bin = reaching(m->bins, BINS, &goal, &lowest);
    if (bin == BINS) return -INFINITY;
    for (int64_t i = 0; i < n; i += LANES) {
        const vec x = load(m->kept + i), w = load(m->weights + i);
        const ivec here = (bins_of(x, high, scale) == splat_int((int32_t)bin)) & (w > 0.0f);
        keep(m->weights + left, w, here);
        left += keep(m->kept + left, x, here);
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int64_t i = 0; i < DIGITS; i++) m->bins[i] = 0.0;
        for (int64_t i = 0; i < left; i++) m->bins[digit(m->kept[i], shift)] += m->weights[i];
        int64_t hit = reaching(m->bins, DIGITS, &goal, &lowest), more = 0;
        if (hit == DIGITS) hit = lowest; /* only rounding has kept it from the goal */
        for (int64_t i = 0; i < left; i++)
            if (digit(m->kept[i], shift) == hit) {
                m->kept[more] = m->kept[i];
                m->weights[more++] = m->weights[i];
            }
        left = more;
    }
    return m->kept[0];
}

/* The k-th highest score. That of the maxima of the lanes is not above it, and leaves few to look at. */
static float top_k_floor(int64_t k, const draw_scores *s, draw_room *m) {
    const float range = 32.0f;
    const int64_t lanes = s->blocks * LANES;
    float lowest = -INFINITY;
    if (k <= lanes) {
        for (int64_t i = 0; i < lanes; i++) m->kept[i] = score_of(s, m->maxima[i]), m->weights[i] = 1.0f;
        lowest = border(lanes, (double)k, s->peak, range, m);
    }
    const int64_t n = gather(lowest, s, m);
    for (int64_t i = 0; i < n; i++) m->weights[i] = 1.0f;
    return border(n, (double)k, s->peak, s->peak - lowest < range ? s->peak - lowest : range, m);
}

/* The score that reaches `top_p` of the total, with all that are higher. So far below the peak that all columns together
 * could not make up the rest, it is not looked for. */
static float top_p_floor(double top_p, double total, float floor, const draw_scores *s, draw_room *m) {
    const double rest = (1.0 - top_p) * total / (double)s->columns;
    const float range = rest < 1.0 ? (float)-log(rest) + 0.01f : 0.01f;
    const float lowest = s->peak - range;
    const int64_t n = gather(lowest > floor ? lowest : floor, s, m);
    for (int64_t i = n; i < n + LANES; i++) m->kept[i] = s->peak;
    for (int64_t i = 0; i < n; i += LANES) store(m->weights + i, weight(load(m->kept + i) - s->peak));
    return border(n, top_p * total, s->peak, range, m);
}

/* The first token whose sum, from token 0 on, is above the target. */
static int64_t token_at(double target, float floor, const draw_scores *s, draw_room *m) {
    double below = 0.0;
    int64_t b = 0, last = 0;
    for (int64_t i = 0; i < s->blocks; i++)
        if (m->sums[i] > 0.0) last = i;
    for (; b < last && below + m->sums[b] <= target; b++) below += m->sums[b];
    const float *block = block_of(s->row, s->columns, b, m);
    const float top = score_of(s, m->tops[b]);
    const double factor = exp((double)top - s->peak);
    int64_t token = 0;
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        const vec x = (load(block + i) - s->shift) / s->temperature;
        const vec weights = (vec)((ivec)weight(x - top) & (x >= splat(floor)));
        for (int l = 0; l < LANES; l++) {
            if (weights[l] <= 0.0f) continue;
            token = b * BLOCK + i + l; /* rounding must not carry the target beyond the block: then it is the last */
            below += weights[l] * factor;
            if (below > target) return token;
        }
    }
    return token;
}

static int64_t first_of_highest(const draw_scores *s, float highest_before, const draw_room *m) {
    int64_t b = 0;
    while (m->tops[b] != highest_before) b++;
    int64_t token = b * BLOCK;
    while (s->row[token] != highest_before) token++;
    return token;
}

static void draw_one(draw_row *row, int64_t columns, draw_room *m) {
    const int penalised = row->scores != row->raw;
    const float temperature = row->greedy ? 0.0f : row->temperature;
    draw_scores s = {row->raw, columns, (columns + BLOCK - 1) / BLOCK, 0.0f, 1.0f, 0.0f};
    float before = survey(row->raw, columns, 1, penalised ? 0.0f : temperature, m);
    row->token = 0;
    row->floor = -INFINITY;
    row->total = NAN;
    if (!isfinite(before)) return;
    s.peak = before;
    row->total = before + log(joined(m->raw_sums, &s, m));
    s.row = row->scores;
    if (penalised) before = survey(row->scores, columns, 0, temperature, m);
    row->token = -1;
    if (!isfinite(before) || isnan(temperature)) return;
    if (row->greedy) {
        row->token = first_of_highest(&s, before, m);
        return;
    }
    s.temperature = temperature;
    const int overflows = !isfinite(before / temperature);
    if (overflows) s.shift = before;
    s.peak = score_of(&s, before);
    double total = overflows ? sums_above(-INFINITY, &s, m) : joined(m->sums, &s, m);
    float floor = -INFINITY;
    if (row->top_k > 0) floor = top_k_floor(row->top_k, &s, m);
    if (row->top_p < 1.0) {
        if (row->top_k > 0) total = sums_above(floor, &s, m);
        const float nucleus = top_p_floor(row->top_p, total, floor, &s, m);
        floor = nucleus > floor ? nucleus : floor;
    }
    const float least = s.peak + row->log_min_p;
    floor = least > floor ? least : floor;
    row->floor = floor;
    if (floor > s.peak) return;
    if (floor > -INFINITY) total = sums_above(floor, &s, m);
    const double target = row->number * total, most = nextafter(total, 0.0);
    row->token = token_at(target < most ? target : most, floor, &s, m);
}

/* Numbers of float64 that each thread needs. */
int64_t nightmill_draw_room(int64_t columns) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK;
    return 2 * blocks + (blocks + blocks * LANES + 2 * (blocks * BLOCK + 2 * LANES)) / 2 + 8;
}

void nightmill_draw(draw_row *rows, int64_t count, int64_t columns, double *room, int32_t threads) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK, size = nightmill_draw_room(columns);
#pragma omp parallel num_threads(threads)
    {
        draw_room m;
        m.sums = room + omp_get_thread_num() * size;
        m.raw_sums = m.sums + blocks;
        m.tops = (float *)(m.raw_sums + blocks);
        m.maxima = m.tops + blocks;
        m.kept = m.maxima + blocks * LANES;
        m.weights = m.kept + blocks * BLOCK + 2 * LANES;
#pragma omp for schedule(dynamic)
        for (int64_t r = 0; r < count; r++) draw_one(rows + r, columns, &m);
    }
}
