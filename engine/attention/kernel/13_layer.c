/* A decoder layer in one call, or in two around an attention that is somebody else's. Between two products stand only
 * norms, rotations and sums, row by row; from Python each would be a call of its own, and what Python needs for one has
 * left the processor's cache by the time that a product is done. Same bits as these calls. */
enum { BACK_ROWS = 512 };

typedef struct {
    const float *gain; /* none: no norm here */
    float eps;
} Norm;

typedef struct {
    Product query, key, value; /* without x, out, rows and threads, here and below */
    Norm before, of_query, of_key;
    int64_t hidden, heads, kv_heads, dim;
} Front;

typedef struct {
    Product output, gated, down;
    Norm after_attention, before_gate, after_down;
    int64_t hidden, inner;
} Back;

static void multiply_all(const Product *fixed, const float *x, int64_t rows, float *out, int64_t out_stride,
                         int32_t threads) {
    Product p = *fixed;
    p.x = x, p.rows = rows, p.x_stride = p.inputs;
    p.out = out, p.out_stride = out_stride, p.threads = threads;
    nightmill_linear(&p);
}

/* From x [rows][hidden] to out [rows][heads + 2 kv_heads][dim]: rotated queries and keys, then values. `scratch` has
 * room for rows * (hidden + (heads + kv_heads) * dim) numbers. */
void nightmill_layer_front(const Front *f, const float *x, int64_t rows, const float *cosine, const float *sine,
                           float *scratch, float *out, int32_t threads) {
    const int64_t turned = f->heads + f->kv_heads, width = turned + f->kv_heads, dim = f->dim;
    float *normed = scratch, *raw = scratch + rows * f->hidden;
    nightmill_rms_norm(x, rows, f->hidden, f->before.gain, f->before.eps, normed, threads);
    multiply_all(&f->query, normed, rows, raw, turned * dim, threads);
    multiply_all(&f->key, normed, rows, raw + f->heads * dim, turned * dim, threads);
    multiply_all(&f->value, normed, rows, out + turned * dim, width * dim, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < turned; h++) {
            float *head = raw + (t * turned + h) * dim;
            const Norm norm = h < f->heads ? f->of_query : f->of_key;
            if (norm.gain) norm_row(head, dim, norm.gain, norm.eps, head);
            rotate_head(head, dim, cosine + t * dim, sine + t * dim, out + (t * width + h) * dim);
        }
}

/* out = x + after(row); where there is a gain for it, row becomes next(out). */
static void add_and_norm(const float *x, float *row, int64_t dim, Norm after, Norm next, float *out) {
    if (after.gain) norm_row(row, dim, after.gain, after.eps, row);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] + row[i];
    if (next.gain) norm_row(out, dim, next.gain, next.eps, row);
}

static void back_rows(const Back *b, const float *attended, const float *x, int64_t rows, float *scratch, float *out,
                      int32_t threads) {
    const int64_t hidden = b->hidden;
    const Norm none = {0};
    float *row = scratch, *inner = scratch + rows * hidden;
    multiply_all(&b->output, attended, rows, row, hidden, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        add_and_norm(x + r * hidden, row + r * hidden, hidden, b->after_attention, b->before_gate, out + r * hidden);
    multiply_all(&b->gated, row, rows, inner, b->inner, threads);
    multiply_all(&b->down, inner, rows, row, hidden, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        add_and_norm(out + r * hidden, row + r * hidden, hidden, b->after_down, none, out + r * hidden);
}

/* From attended [rows][output.inputs] and the layer's input x to its output, both [rows][hidden]. `scratch` has room for
 * min(rows, BACK_ROWS) * (hidden + inner) numbers. So many rows at a time: what stands between two products is then in a
 * cache when the next one reads it. */
void nightmill_layer_back(const Back *b, const float *attended, const float *x, int64_t rows, float *scratch, float *out,
                          int32_t threads) {
    const int64_t passes = (rows + BACK_ROWS - 1) / BACK_ROWS;
    for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t from = cut(rows, pass, passes), count = cut(rows, pass + 1, passes) - from;
        const float *seen = attended + from * b->output.inputs;
        back_rows(b, seen, x + from * b->hidden, count, scratch, out + from * b->hidden, threads);
    }
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* All of it: `attention` has the pools and traits of the layer, `slots` is where this step's keys and values belong.
 * `scratch` has room for rows * (2 (heads + kv_heads) * dim + 2 heads) numbers and for the larger of what the two parts
 * need. */
void nightmill_layer(const Front *f, const Back *b, Layer *attention, const Step *step, const int64_t *slots,
                     const float *x, int64_t rows, const float *cosine, const float *sine, float *scratch, float *out,
                     int32_t threads) {
    const int64_t dim = f->dim, first = f->heads * dim, each = f->kv_heads * dim, width = first + 2 * each;
    float *whole = scratch, *attended = whole + rows * width, *left = attended + rows * first;
    scratch = left + 2 * rows * f->heads;
    nightmill_layer_front(f, x, rows, cosine, sine, scratch, whole, threads);
    const double begin = seconds_now();
    float *keys = (float *)attention->keys, *values = (float *)attention->values;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < f->kv_heads; h++) {
            const float *from = whole + t * width + first + h * dim;
            const int64_t to = (h * attention->num_slots + slots[t]) * dim;
            memcpy(keys + to, from, (size_t)dim * sizeof(float));
            memcpy(values + to, from + each, (size_t)dim * sizeof(float));
        }
    Layer layer = *attention;
    layer.query = whole, layer.query_head_stride = dim, layer.query_token_stride = width;
    layer.out = attended, layer.maxima = left, layer.totals = left + rows * f->heads, layer.threads = threads;
    nightmill_attend(step, &layer);
    attention->seconds += seconds_now() - begin;
    nightmill_layer_back(b, attended, x, rows, scratch, out, threads);
}
