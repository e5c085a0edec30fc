/* Attention over paged memory: decodes and prefill chunks, grouped-query, sliding window, softcap, sinks.
 *
 *   keys    [kv_heads][slot][key_dim]        slot = block * block_size + position in the block
 *   values  [kv_heads][slot][value_dim]
 *   query   [heads][column] with strides     out [column][heads][value_dim]
 *
 * A tile is some queries over one stretch of keys, under one KV head; all query heads that share the KV head are rows of
 * it, so each key and value is loaded once for all of them. The softmax runs over passes of PASS keys with a running
 * maximum (FlashAttention, arXiv 2205.14135); passes begin at multiples of PASS in the sequence.
 *
 * A tile may leave its rows unfinished, and a later one go on with them. So sequences that share blocks come to the
 * shared stretch as one tile and to their own ends each alone (the idea of Hydragen, arXiv 2402.05099; here the running
 * softmax is handed on, so that nothing is merged). */
enum { PASS = 64, UNIT = 8 };

static inline int whole_units(int count) { return (count + UNIT - 1) / UNIT * UNIT; }

typedef struct {
    int32_t first_member, num_members; /* its queries */
    int32_t chunk;                     /* whose table has the blocks */
    int32_t from, to;                  /* positions of the keys */
    int32_t resumes, suspends;         /* takes rows over from an earlier tile; leaves them to a later one */
} Tile;

typedef struct {
    const int32_t *tables;       /* [chunks][table_width] */
    const int64_t *first_blocks; /* [chunks] absolute index of the first entry of its table */
    const int32_t *columns;      /* [members] the query's column in the packed row */
    const int32_t *positions;    /* [members] its position in the sequence */
    const Tile *tiles;           /* stage by stage: a tile that resumes comes in a later stage */
    const int64_t *stages;       /* [num_stages + 1] the first tile of each */
    int64_t num_stages, table_width, block_size, window; /* window 0: full attention */
} Step;

typedef struct {
    const float *query, *keys, *values, *sinks; /* sinks may be null */
    float *out, *maxima, *totals;               /* the last two [column][heads], for rows that are handed on */
    int64_t query_head_stride, query_token_stride; /* in floats */
    int64_t num_slots, heads, kv_heads, key_dim, value_dim;
    float scale, softcap; /* softcap 0: none */
    int32_t threads, steady; /* steady: a row has the same bits in every tile */
    double seconds; /* what attention within whole layers has taken */
} Layer;

/* Where the keys and values of the pass at `base` lie, from `from` on; how many there are. They come in whole units: what
 * is not there is another's, and hidden. */
static int find_pass(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head, int64_t base, int from,
                     const float **keys, const float **values) {
    const float *all_keys = layer->keys + kv_head * layer->num_slots * layer->key_dim;
    const float *all_values = layer->values + kv_head * layer->num_slots * layer->value_dim;
    const int32_t *table = step->tables + tile->chunk * step->table_width - step->first_blocks[tile->chunk];
    const int64_t size = step->block_size, rest = tile->to - base;
    const int count = rest < 0 ? 0 : rest < PASS ? (int)rest : PASS;
    for (int i = from; i < count;) {
        const int64_t position = base + i, within = position % size;
        const int64_t slot = (int64_t)table[position / size] * size + within;
        for (int64_t j = 0; j < size - within && i < count; j++, i++) {
            keys[i] = all_keys + (slot + j) * layer->key_dim;
            values[i] = all_values + (slot + j) * layer->value_dim;
        }
    }
    for (int i = 0; i < from; i++) keys[i] = keys[from], values[i] = values[from];
    for (int i = count; i % UNIT; i++) keys[i] = keys[count - 1], values[i] = values[count - 1];
    return count;
}

/* Whether the values of the keys [from, count) are numbers, all of them, and none is infinite. */
static int are_finite(const float *const *values, int64_t dim, int from, int count) {
    int32_t found = 0;
    for (int k = from; k < count; k++) {
        const loose_int *value = (const loose_int *)values[k];
        for (int64_t d = 0; d < dim; d++) found |= (value[d] & 0x7f800000) == 0x7f800000;
    }
    return !found;
}

/* One row of a tile: a query under one head, and what an earlier tile has left of it. */
typedef struct {
    const float *query;
    float *out;
    int64_t place; /* in the tables of what is handed on */
    float maximum, total;
    int32_t position;
} Row;

static inline Row find_row(const Step *step, const Layer *layer, const Tile *tile, int64_t kv_head, int64_t row) {
    const int64_t group = layer->heads / layer->kv_heads, head = kv_head * group + row % group;
    const int64_t member = tile->first_member + row / group, column = step->columns[member];
    const int64_t place = column * layer->heads + head;
    Row found = {
        .query = layer->query + head * layer->query_head_stride + column * layer->query_token_stride,
        .out = layer->out + place * layer->value_dim,
        .place = place,
        .maximum = -FLT_MAX,
        .position = step->positions[member],
    };
    if (tile->resumes) {
        found.maximum = layer->maxima[place];
        found.total = layer->totals[place];
    } else if (layer->sinks) {
        found.maximum = layer->sinks[head];
        found.total = 1.0f;
    }
    return found;
}

static inline void leave_row(const Layer *layer, const Row *row, float maximum, float total) {
    layer->maxima[row->place] = maximum;
    layer->totals[row->place] = total;
}
