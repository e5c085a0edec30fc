/* gate = act(gate) * up, number by number; a number has the same bits wherever it stands. */
enum { SILU, GELU_TANH };

static inline vec activated(vec x, int32_t kind) {
    vec steep = x; /* x / (1 + exp(-steep)); tanh(u) = 2 / (1 + exp(-2 u)) - 1 makes one of the other */
    if (kind == GELU_TANH) steep = 1.5957691216f * (x + 0.044715f * (x * x * x));
    return x / (1.0f + exponential(-larger(splat(-87.0f), steep)));
}

void nightmill_gate(float *gate, const float *up, int64_t count, int32_t kind, int32_t threads) {
    const int64_t whole = count - count % LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < whole; i += LANES) store(gate + i, activated(load(gate + i), kind) * load(up + i));
    float rest[LANES] = {0};
    for (int64_t i = whole; i < count; i++) rest[i - whole] = gate[i];
    const vec last = activated(load(rest), kind);
    for (int64_t i = whole; i < count; i++) gate[i] = last[i - whole] * up[i];
}

/* Rotary embedding (arXiv 2104.09864) of the two halves of one head. Multiplied and added as torch does it, so to the same
 * bits. */
static inline void rotate_head(const float *from, int64_t dim, const float *cosine, const float *sine, float *to) {
    const int64_t half = dim / 2;
    for (int64_t d = 0; d < half; d++) to[d] = from[d] * cosine[d] + -from[d + half] * sine[d];
    for (int64_t d = half; d < dim; d++) to[d] = from[d] * cosine[d] + from[d - half] * sine[d];
}

/* Of all heads: out [token][head][dim], x with strides, cos and sin [token][dim]. */
void nightmill_rotate(const float *x, int64_t tokens, int64_t heads, int64_t dim, int64_t token_stride,
                      int64_t head_stride, const float *cosine, const float *sine, float *out, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++)
            rotate_head(x + t * token_stride + h * head_stride, dim, cosine + t * dim, sine + t * dim,
                        out + (t * heads + h) * dim);
}
