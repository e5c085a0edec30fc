"""Measure what this machine can do for the shapes of a model: products, attention, memory. Prints one JSON line.

    python -m ops.bench.rates --models gemma3-270m smollm2-135m [--threads 2] [--brief]

Each rate is the best of several runs and of several ways to compute the same: a limit must not be what one way costs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from engine.attention.base import LayerTraits
from engine.attention.choose import choose_backend
from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.model.batch import pack
from engine.model.linears import choose_linears
from engine.request import SamplingParams
from engine.step import Chunk
from ops.bench.limit import ModelShape, Product, Rates, shape_of
from ops.bench.machine import cpu_model, versions
from ops.paths import MODELS

ROWS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
BRIEF_ROWS = (32, 128, 512)
HEAD_ROWS = 256  # a step samples no more rows
HEAD_COLUMNS = 32_768  # above this a product is an output projection
TILE_COLUMNS = 16_384  # a result that stays in the cache costs no page faults
SEQUENCES = 64
CONTEXTS = (128, 512, 1024)
BLOCK = 16


def seconds_of(run: Callable[[], Any], at_least: float) -> float:
    """The best of at least three runs that take `at_least` seconds together."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def product_rates(product: Product, rows: tuple[int, ...], at_least: float) -> list[dict[str, Any]]:
    """The best way for each number of rows, in GFLOP/s."""
    weight = torch.randn(product.outputs, product.inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    parts = weight.split(TILE_COLUMNS)
    tiles = [torch.ops.mkldnn._reorder_linear_weight(part, 32) for part in parts]
    make = choose_linears(EngineConfig(), packable=True).make
    own, own_tiles = make(weight, None), [make(part, None) for part in parts]
    found = []
    for count in rows:
        if product.outputs >= HEAD_COLUMNS and count > HEAD_ROWS:
            continue
        batch = torch.randn(count, product.inputs)
        out = torch.empty(count, product.outputs)  # kept: a fresh one costs page faults
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda batch=batch, out=out: torch.mm(batch, weight.t(), out=out),
            "packed": lambda batch=batch: torch.ops.mkldnn._linear_pointwise(batch, packed, None, "none", [], ""),
            "ours": lambda batch=batch: own(batch),
        }
        if product.outputs >= HEAD_COLUMNS:
            ways["packed tiles"] = lambda batch=batch: [
                torch.ops.mkldnn._linear_pointwise(batch, tile, None, "none", [], "") for tile in tiles
            ]
            ways["our tiles"] = lambda batch=batch: [tile(batch) for tile in own_tiles]
        rates = {name: 2 * count * weight.numel() / seconds_of(run, at_least) / 1e9 for name, run in ways.items()}
        best = max(rates, key=lambda name: rates[name])
        found.append({"rows": count, "gflop_s": round(rates[best], 2), "by": best})
    return [{"inputs": product.inputs, "outputs": product.outputs} | one for one in found]


def attention_rates(shape: ModelShape, at_least: float) -> dict[str, float]:
    """GFLOP/s of the two products of attention, softmax not counted: prompts, shared and own parts of decodes."""
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    group = heads // kv_heads
    own = shared = prefill = 0.0
    for context in CONTEXTS:
        own = max(own, _pair_rate(SEQUENCES * kv_heads, group, context, dim, at_least))
        own = max(own, _engine_rate(shape, [(context, 1)] * SEQUENCES, at_least))
        shared = max(shared, _pair_rate(kv_heads, SEQUENCES * group, context, dim, at_least))
        prefill = max(prefill, _pair_rate(heads, context, context, dim, at_least))
        prefill = max(prefill, _engine_rate(shape, [(0, context)], at_least))
    return {"own": round(own, 2), "shared": round(max(shared, own), 2), "prefill": round(prefill, 2)}


def _pair_rate(batch: int, rows: int, context: int, dim: int, at_least: float) -> float:
    """Batched products of `rows` queries with `context` keys and of their weights with as many values."""
    query, keys = torch.randn(batch, rows, dim), torch.randn(batch, context, dim)
    scores, out = torch.empty(batch, rows, context), torch.empty(batch, rows, dim)

    def run() -> None:
        torch.bmm(query, keys.transpose(1, 2), out=scores)
        torch.bmm(scores, keys, out=out)

    return 4 * batch * rows * context * dim / seconds_of(run, at_least) / 1e9


def _group(shape: ModelShape) -> LayerGroup:
    return LayerGroup(
        index=0,
        kind="full",
        layers=(0,),
        block_size=BLOCK,
        window=None,
        num_kv_heads=shape.num_kv_heads,
        key_dim=shape.head_dim,
        value_dim=shape.head_dim,
    )


def _engine_rate(shape: ModelShape, spans: list[tuple[int, int]], at_least: float) -> float:
    """Our own attention over chunks of (start, length), each with blocks of its own. It does the softmax as well."""
    group = _group(shape)
    backend = choose_backend((group,), shape.num_heads, torch.float32, torch.device("cpu"), EngineConfig())
    widest = max(-(-(start + length) // BLOCK) for start, length in spans)
    chunks = [
        Chunk(
            sequence_id=row,
            token_ids=[0] * (start + length),
            start=start,
            length=length,
            tables=(range(1 + row * widest, 1 + (row + 1) * widest),),
            sample_indices=(0,),
            sampling=SamplingParams(),
            prompt_len=start + length,
        )
        for row, (start, length) in enumerate(spans)
    ]
    plan = backend.plan(pack(chunks, (group,)).spans[0])
    keys = torch.randn(shape.num_kv_heads, (len(spans) * widest + 1) * BLOCK, shape.head_dim)
    query = torch.randn(shape.num_heads, sum(length for _, length in spans), shape.head_dim)
    traits = LayerTraits(scale=shape.head_dim**-0.5)
    pairs = sum(start * length + length * (length + 1) // 2 for start, length in spans)
    return shape.attention_flops * pairs / seconds_of(lambda: plan.attend(query, keys, keys, traits), at_least) / 1e9


def bandwidth(at_least: float) -> float:
    """GB/s of the better of reading and copying 256 MB."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    num_bytes = source.numel() * source.itemsize
    read = num_bytes / seconds_of(source.sum, at_least)
    copied = 2 * num_bytes / seconds_of(lambda: target.copy_(source), at_least)
    return round(max(read, copied) / 1e9, 2)


def measure(models: list[str], threads: int, rows: tuple[int, ...], at_least: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    shapes = {model: shape_of(json.loads((MODELS / model / "config.json").read_text())) for model in models}
    products = {(p.inputs, p.outputs): p for shape in shapes.values() for p in (*shape.products, shape.head)}
    return {
        "kind": "rates",
        "cpu": cpu_model(),
        "threads": threads,
        "models": models,
        "versions": versions(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "products": [line for product in products.values() for line in product_rates(product, rows, at_least)],
        "attention": {model: attention_rates(shape, at_least) for model, shape in shapes.items()},
        "bandwidth_gb_s": bandwidth(at_least),
    }


def rates_of(line: dict[str, Any], model: str) -> Rates:
    """What a line of `measure` says of one model."""
    products: dict[tuple[int, int], dict[int, float]] = {}
    for one in line["products"]:
        products.setdefault((one["inputs"], one["outputs"]), {})[one["rows"]] = one["gflop_s"]
    return Rates(products=products, bandwidth=line["bandwidth_gb_s"], **line["attention"][model])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the rates that the limit is computed from.")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--brief", action="store_true", help="fewer batches, shorter")
    options = parser.parse_args()
    rows, at_least = (BRIEF_ROWS, 0.03) if options.brief else (ROWS, 0.1)
    with torch.inference_mode():
        print(json.dumps(measure(options.models, options.threads, rows, at_least)))


if __name__ == "__main__":
    main()
