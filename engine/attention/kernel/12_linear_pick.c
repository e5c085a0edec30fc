/* The best token of each row by a product whose logits do not leave the cache: a group of panels at a time, all rows, then
 * what nightmill_pick does. Each group has picks of its own, which are put together in the order of their columns: the
 * sums have one order, however many threads there are. */
enum { GROUP = 8 }; /* panels */

/* The memory that a call needs, in floats. */
int64_t nightmill_linear_pick_scratch(int32_t threads) { return (int64_t)threads * MOST_ROWS * GROUP * PANEL; }

/* For how many parts of so many outputs it needs picks. */
int64_t nightmill_linear_pick_parts(int64_t outputs) { return (outputs + GROUP * PANEL - 1) / (GROUP * PANEL); }

/* Rows from `from` on by one group of panels. */
static void pick_group(const Product *p, int64_t from, int64_t count, int64_t group, int64_t first_column, float *logits,
                       const Picks *parts) {
    const int64_t panels = panels_of(p), panel = group * GROUP, end = panel + GROUP < panels ? panel + GROUP : panels;
    const int64_t column = panel * PANEL, at = group * p->rows;
    const int64_t columns = (end * PANEL < p->outputs ? end * PANEL : p->outputs) - column;
    const Picks own = {parts->maximum + at, parts->token + at, parts->total + at};
    Product here = *p;
    here.out_stride = GROUP * PANEL;
    here.out = logits - from * here.out_stride - column;
    multiply_panels(&here, from, count, panel, end, end % panels);
    for (int64_t r = 0; r < count; r++)
        pick_row(logits + r * here.out_stride, columns, first_column + column, own, from + r);
}

/* `parts`: for each part as many picks as there are rows, as they begin. */
void nightmill_linear_pick(const Product *p, int64_t first_column, const Picks *best, const Picks *parts, float *scratch) {
    const int64_t groups = nightmill_linear_pick_parts(p->outputs), threads = p->threads;
    const int64_t passes = (p->rows + MOST_ROWS - 1) / MOST_ROWS;
    Part left[threads];
    share_out(left, threads, passes * groups);
#pragma omp parallel for schedule(static, 1) num_threads(p->threads)
    for (int64_t own = 0; own < threads; own++) {
        float *logits = scratch + own * MOST_ROWS * GROUP * PANEL;
        for (int64_t piece; (piece = next_piece(left, threads, own)) != NONE;) {
            const int64_t pass = piece / groups, from = cut(p->rows, pass, passes);
            pick_group(p, from, cut(p->rows, pass + 1, passes) - from, piece % groups, first_column, logits, parts);
        }
    }
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t i = r; i < groups * p->rows; i += p->rows) {
            const float here = parts->maximum[i], before = best->maximum[r];
            const float shrink = here == before ? 1.0f : expf(-fabsf(here - before)); /* both may be -infinity */
            if (here > before) {
                best->token[r] = parts->token[i];
                best->maximum[r] = here;
                best->total[r] = best->total[r] * shrink + parts->total[i];
            } else
                best->total[r] += parts->total[i] * shrink;
        }
    }
}
