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
