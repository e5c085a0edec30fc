/* out = x / sqrt(mean(x^2) + eps) * gain. A row is summed in one fixed order, whatever the batch; it may be its own target. */
static void norm_row(const float *row, int64_t dim, const float *gain, float eps, float *target) {
    const int64_t whole = dim - dim % LANES;
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

void nightmill_rms_norm(const float *x, int64_t rows, int64_t dim, const float *gain, float eps, float *out,
                        int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) norm_row(x + r * dim, dim, gain, eps, out + r * dim);
}
