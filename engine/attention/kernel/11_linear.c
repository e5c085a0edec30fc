/* Products of rows with packed weights: out = x * weight^T + bias, by register tiles over panels (Goto and van de Geijn,
 * "Anatomy of high-performance matrix multiplication", 2008; Van Zee and van de Geijn, "BLIS", 2015).
 *
 * A panel is the weights of PANEL outputs, [input][PANEL]; a tile is TALL rows of a panel's outputs, whose sums stay in
 * registers over all inputs. Each sum is one chain of fused multiply-adds in the order of the inputs, so a row has the
 * same bits whatever stands beside it, and however many threads there are. While a panel is multiplied, the next one is
 * asked for, spread evenly over the work: in batches that decode, weights come from memory. Threads that have done their
 * part help the others.
 *
 * A gated product, out = act(x * gate^T) * (x * up^T), has LANES outputs of the gate and the same of up in each panel.
 *
 * Weights may be numbers of 8 bits, of which each output has a scale; they become floats on their way into a register. */
#ifdef __AVX512F__
enum { TALL = 8 };
#else
enum { TALL = 6 };
#endif
enum { PANEL = 2 * LANES, QUAD = 4, MOST_ROWS = 256 };

typedef struct {
    const float *x; /* [rows][inputs], x_stride apart */
    const void *panels; /* [panels][inputs][PANEL], of floats, or of 8 bits where there are scales */
    const float *scales; /* [panels][PANEL], or none */
    const float *bias; /* [panels][PANEL], or none */
    float *out; /* [rows][outputs], out_stride apart */
    int64_t rows, inputs, outputs, x_stride, out_stride;
    int32_t threads;
    int32_t gate; /* an activation, or NO_GATE */
} Product;

enum { NO_GATE = -1 };

typedef struct {
    const char *next; /* what to ask for */
    int64_t pace; /* bytes in each quad of inputs */
} Ahead;

typedef struct { vec left, right; } Pair;

static inline Pair pair_of(const float *numbers, int64_t panel) {
    if (!numbers) return (Pair){{0}, {0}};
    return (Pair){load(numbers + panel * PANEL), load(numbers + panel * PANEL + LANES)};
}

/* The LANES weights from number `at` on. */
static inline __attribute__((always_inline)) vec weights(const void *panels, int64_t at, const int narrow) {
    if (!narrow) return load((const float *)panels + at);
    const int8_t *bytes = (const int8_t *)panels + at;
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
#else
    vec wide;
    for (int i = 0; i < LANES; i++) wide[i] = bytes[i];
    return wide;
#endif
}

static inline __attribute__((always_inline)) void multiply_rows(const Product *p, int64_t row, int64_t panel, Ahead ahead,
                                                                Pair *sums, const int tall, const int narrow) {
    const int64_t stride = p->x_stride, w = panel * p->inputs * PANEL;
    const float *x = p->x + row * stride;
    const float *thirds[3] = {x, x + 3 * stride, x + 6 * stride}; /* few addresses for many rows */
    Pair sum[TALL];
    const Pair bias = pair_of(p->bias, panel), first = narrow ? (Pair){{0}, {0}} : bias;
#pragma GCC unroll 8
    for (int r = 0; r < tall; r++) sum[r] = first;
    const int64_t whole = p->inputs - p->inputs % QUAD;
#define MULTIPLY(k) \
    { \
        const vec left = weights(p->panels, w + (k) * PANEL, narrow); \
        const vec right = weights(p->panels, w + (k) * PANEL + LANES, narrow); \
        _Pragma("GCC unroll 8") for (int r = 0; r < tall; r++) { \
            const vec number = splat(thirds[r / 3][(r % 3) * stride + (k)]); \
            sum[r].left = mul_add(number, left, sum[r].left); \
            sum[r].right = mul_add(number, right, sum[r].right); \
        } \
    }
    for (int64_t k = 0; k < whole; k += QUAD) {
        __builtin_prefetch(ahead.next, 0, 3);
        __builtin_prefetch(ahead.next + ahead.pace / 2, 0, 3);
        ahead.next += ahead.pace;
        MULTIPLY(k) MULTIPLY(k + 1) MULTIPLY(k + 2) MULTIPLY(k + 3)
    }
    for (int64_t k = whole; k < p->inputs; k++) MULTIPLY(k)
#undef MULTIPLY
#pragma GCC unroll 8
    for (int r = 0; r < tall; r++) sums[r] = sum[r];
    if (!narrow) return;
    const Pair scale = pair_of(p->scales, panel);
    for (int r = 0; r < tall; r++)
        sums[r] = (Pair){mul_add(sum[r].left, scale.left, bias.left), mul_add(sum[r].right, scale.right, bias.right)};
}

/* The sums of `tall` rows, at most TALL. */
static void multiply(const Product *p, int64_t row, int64_t panel, Ahead ahead, Pair *sums, int64_t tall) {
#define CASE(n) \
    case n: \
        if (p->scales) multiply_rows(p, row, panel, ahead, sums, n, 1); \
        else multiply_rows(p, row, panel, ahead, sums, n, 0); \
        break;
    switch (tall) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
        CASE(7) CASE(8)
#endif
    }
#undef CASE
}

/* The part of `count` that is number `part` of `parts`. */
static inline int64_t cut(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

/* Pieces of work that are left of a thread's part: the first of them, and above it the end. */
typedef struct { _Alignas(64) uint64_t span; } Part;

enum { NONE = -1 };

static int64_t take(Part *part, const int last) {
    uint64_t span = __atomic_load_n(&part->span, __ATOMIC_RELAXED), left;
    do {
        if ((uint32_t)span >= span >> 32) return NONE;
        left = last ? span - (1ULL << 32) : span + 1;
    } while (!__atomic_compare_exchange_n(&part->span, &span, left, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return last ? (int64_t)(left >> 32) : (int64_t)(uint32_t)span;
}

static void share_out(Part *parts, int64_t threads, int64_t pieces) {
    for (int64_t i = 0; i < threads; i++)
        parts[i].span = (uint64_t)cut(pieces, i, threads) | (uint64_t)cut(pieces, i + 1, threads) << 32;
}

/* The next piece of a thread: of its own part, then the last one of another's. On a machine that others use as well, no
 * two cores are equally fast. */
static int64_t next_piece(Part *parts, int64_t threads, int64_t own) {
    int64_t piece = take(&parts[own], 0);
    for (int64_t i = 1; piece == NONE && i < threads; i++) piece = take(&parts[(own + i) % threads], 1);
    return piece;
}

/* Sums to where they belong: all of a panel's outputs, or what the last panel has of them. */
static void finish(const Product *p, int64_t row, int64_t panel, Pair *sums, int64_t tall) {
    const int64_t width = p->gate == NO_GATE ? PANEL : LANES, column = panel * width;
    if (p->gate != NO_GATE)
        for (int64_t r = 0; r < tall; r++) sums[r].left = activated(sums[r].left, p->gate) * sums[r].right;
    const int64_t here = p->outputs - column < width ? p->outputs - column : width;
    for (int64_t r = 0; r < tall; r++) {
        float *out = p->out + (row + r) * p->out_stride + column;
        if (here == PANEL) {
            store(out, sums[r].left);
            store(out + LANES, sums[r].right);
        } else if (here == LANES)
            store(out, sums[r].left);
        else
            memcpy(out, &sums[r], (size_t)here * sizeof(float));
    }
}

static inline int64_t panels_of(const Product *p) {
    const int64_t width = p->gate == NO_GATE ? PANEL : LANES;
    return (p->outputs + width - 1) / width;
}

/* `count` rows from `from` on, by the panels [begin, end); most likely the thread then goes on to panel `after`. */
static void multiply_panels(const Product *p, int64_t from, int64_t count, int64_t begin, int64_t end, int64_t after) {
    const int64_t panel_bytes = p->inputs * PANEL * (p->scales ? 1 : (int64_t)sizeof(float));
    const int64_t tiles = (count + TALL - 1) / TALL, quads = tiles * (p->inputs / QUAD + 1);
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t row = from + cut(count, tile, tiles), tall = from + cut(count, tile + 1, tiles) - row;
            const char *next = (const char *)p->panels + (panel + 1 < end ? panel + 1 : after) * panel_bytes;
            const Ahead ahead = {next + panel_bytes * tile / tiles, panel_bytes / quads};
            Pair sums[TALL];
            multiply(p, row, panel, ahead, sums, tall);
            finish(p, row, panel, sums, tall);
        }
}

/* In how many passes the rows come: few enough rows for the second cache, and two pieces for each thread. */
static int64_t passes_of(const Product *p, int64_t panels) {
    const int64_t fit = (p->rows + MOST_ROWS - 1) / MOST_ROWS, least = panels > 0 ? panels : 1;
    const int64_t wanted = (2 * p->threads + least - 1) / least;
    const int64_t tiles = (p->rows + TALL - 1) / TALL;
    return wanted <= fit ? fit : wanted < tiles ? wanted : tiles;
}

void nightmill_linear(const Product *p) {
    const int64_t panels = panels_of(p), passes = passes_of(p, panels), threads = p->threads;
    Part parts[threads];
    share_out(parts, threads, passes * panels);
#pragma omp parallel for schedule(static, 1) num_threads(p->threads)
    for (int64_t own = 0; own < threads; own++)
        for (int64_t piece; (piece = next_piece(parts, threads, own)) != NONE;) {
            const int64_t pass = piece / panels, panel = piece % panels, from = cut(p->rows, pass, passes);
            multiply_panels(p, from, cut(p->rows, pass + 1, passes) - from, panel, panel + 1, (panel + 1) % panels);
        }
}

int32_t nightmill_panel(void) { return PANEL; }

/* Whether there is what the tiles are made for. */
int32_t nightmill_multiplies_fast(void) {
#ifdef __FMA__
    return 1;
#else
    return 0;
#endif
}
