/* One tile of logits of each row into its running maximum, the token that has it, and the sum of exp(logit - maximum).
 * The first of equal logits wins. */
typedef struct {
    float *maximum;
    int64_t *token;
    float *total;
} Picks;

static void pick_row(const float *row, int64_t columns, int64_t first_column, Picks best, int64_t r) {
    const int64_t whole = columns - columns % LANES;
    vec top = splat(-INFINITY), sums = {0};
    ivec bad = {0};
    for (int64_t i = 0; i < whole; i += LANES) {
        const vec x = load(row + i);
        bad |= x != x;
        top = larger(x, top);
    }
    float highest_here = highest(top), part = 0.0f;
    for (int64_t i = whole; i < columns; i++) highest_here = row[i] > highest_here ? row[i] : highest_here;
    const float before = best.maximum[r], peak = highest_here > before ? highest_here : before;
    if (peak == -INFINITY) { /* relative to nothing: -infinity has no weight, and what is no number shows */
        for (int64_t i = 0; i < columns; i++) part += expf(row[i]);
        best.total[r] += part;
        return;
    }
    for (int64_t i = 0; i < whole; i += LANES) sums += exponential(load(row + i) - peak);
    for (int64_t i = whole; i < columns; i++) part += expf(row[i] - peak);
    if (any(bad)) part = NAN;
    if (highest_here > before) {
        int64_t i = 0;
        while (row[i] != highest_here) i++;
        best.token[r] = first_column + i;
        best.total[r] *= expf(before - peak);
        best.maximum[r] = peak;
    }
    best.total[r] += sum(sums) + part;
}

void nightmill_pick(const float *logits, int64_t rows, int64_t columns, int64_t stride, int64_t first_column,
                    const Picks *best, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) pick_row(logits + r * stride, columns, first_column, *best, r);
}
