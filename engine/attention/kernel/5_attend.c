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
