void nightmill_attend(const Step *step, const Layer *layer) {
    const int64_t group = layer->heads / layer->kv_heads;
    for (int64_t stage = 0; stage < step->num_stages; stage++) {
        const int64_t first = step->stages[stage], tiles = step->stages[stage + 1] - first;
#pragma omp parallel for schedule(dynamic, 1) num_threads(layer->threads)
        for (int64_t task = 0; task < tiles * layer->kv_heads; task++) {
            /* Tasks of one KV head come together, so blocks shared by several sequences stay in the processor's cache. */
            const Tile *tile = step->tiles + first + task % tiles;
            if (!layer->steady && tile->num_members * group <= FEW_ROWS) attend_few(step, layer, tile, task / tiles);
            else attend_many(step, layer, tile, task / tiles);
        }
    }
}

/* Rows [head][token][dim] with strides to their slots in a pool [head][slot][dim]. */
void nightmill_store(float *pool, int64_t num_slots, const int64_t *slots, const float *rows, int64_t heads,
                     int64_t tokens, int64_t dim, int64_t head_stride, int64_t token_stride, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++) {
            const float *from = rows + h * head_stride + t * token_stride;
            float *to = pool + (h * num_slots + slots[t]) * dim;
            for (int64_t d = 0; d < dim; d++) to[d] = from[d];
        }
}
