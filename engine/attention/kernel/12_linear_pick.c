/* The best token of each row by a product whose logits do not leave the cache: some panels at a time, all rows, then what
 * nightmill_pick does. Each thread has columns of its own; in the end theirs are put together, the first columns first. */
enum { GROUP = 8 }; /* panels */

/* The memory that a call needs, in floats. */
int64_t nightmill_linear_pick_scratch(int32_t threads) { return (int64_t)threads * MOST_ROWS * GROUP * PANEL; }

static void pick_columns(const Product *p, int64_t begin, int64_t end, int64_t first_column, float *logits, Picks best) {
    const int64_t passes = (p->rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t from = cut(p->rows, pass, passes), count = cut(p->rows, pass + 1, passes) - from;
        for (int64_t panel = begin; panel < end; panel += GROUP) {
            const int64_t next = panel + GROUP < end ? panel + GROUP : end, column = panel * PANEL;
            const int64_t columns = (next * PANEL < p->outputs ? next * PANEL : p->outputs) - column;
            Product here = *p;
            here.out_stride = GROUP * PANEL;
            here.out = logits - from * here.out_stride - column;
            multiply_panels(&here, from, count, panel, next, end);
            for (int64_t r = 0; r < count; r++)
                pick_row(logits + r * here.out_stride, columns, first_column + column, best, from + r);
        }
    }
}

/* `parts`: for each thread as many picks as there are rows, as they begin. */
void nightmill_linear_pick(const Product *p, int64_t first_column, const Picks *best, const Picks *parts, float *scratch) {
    const int64_t panels = panels_of(p), threads = p->threads < panels ? p->threads : panels;
#pragma omp parallel for schedule(static, 1) num_threads(p->threads)
    for (int64_t part = 0; part < threads; part++) {
        const Picks own = {parts->maximum + part * p->rows, parts->token + part * p->rows, parts->total + part * p->rows};
        float *logits = scratch + part * MOST_ROWS * GROUP * PANEL;
        pick_columns(p, cut(panels, part, threads), cut(panels, part + 1, threads), first_column, logits, own);
    }
    for (int64_t i = 0; i < threads * p->rows; i++) {
        const int64_t r = i % p->rows;
        const float peak = parts->maximum[i] > best->maximum[r] ? parts->maximum[i] : best->maximum[r];
        if (parts->maximum[i] > best->maximum[r]) best->token[r] = parts->token[i];
        best->total[r] = best->total[r] * expf(best->maximum[r] - peak) + parts->total[i] * expf(parts->maximum[i] - peak);
        best->maximum[r] = peak;
    }
}
