"""The least seconds that this machine needs for a workload: the arithmetic. `ops.bench.rates` measures what it uses.

Only matrix products and attention count, everything else is free. Each takes its FLOPs over the best rate that was
measured for its shape in a batch that the workload allows, or its bytes over the bandwidth, whichever is longer.
A prefix that several sequences share is computed once, and its keys and values are read once per step. In the last
layer a prompt's tokens need no more than keys and values, but for the one that the answer follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from ops.bench.work import Work

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product that each token goes through `count` times, in layers with weights of their own."""

    inputs: int
    outputs: int
    count: int = 1

    @property
    def flops(self) -> int:
        """Per token."""
        return 2 * self.inputs * self.outputs * self.count

    @property
    def weight_bytes(self) -> int:
        return FLOAT_BYTES * self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder: its products, its output projection, and its attention layers by window (None: no window)."""

    products: tuple[Product, ...]
    queries: tuple[Product, ...]  # of one layer: what only rows need whose output is read
    head: Product
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[tuple[int | None, int], ...]  # (window, layers)

    @property
    def attention_flops(self) -> int:
        """Per token, visible token and layer."""
        return 4 * self.num_heads * self.head_dim

    @property
    def kv_bytes(self) -> int:
        """Per token and layer."""
        return 2 * FLOAT_BYTES * self.num_kv_heads * self.head_dim


def shape_of(config: dict[str, Any]) -> ModelShape:
    """From a `config.json` of the Llama or Gemma 3 kind. Projections that read the same input count as one product."""
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, kv_heads, dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    kinds = config.get("layer_types") or ["full_attention"] * layers
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"the limit of layers of kind {', '.join(sorted(unknown))} is not known")
    windows = [config["sliding_window"] if kind == "sliding_attention" else None for kind in kinds]
    return ModelShape(
        products=(
            Product(hidden, (heads + 2 * kv_heads) * dim, layers),
            Product(heads * dim, hidden, layers),
            Product(hidden, 2 * inner, layers),
            Product(inner, hidden, layers),
        ),
        queries=(
            Product(hidden, heads * dim),
            Product(heads * dim, hidden),
            Product(hidden, 2 * inner),
            Product(inner, hidden),
        ),
        head=Product(hidden, config["vocab_size"]),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        windows=tuple((window, windows.count(window)) for window in dict.fromkeys(windows)),
    )


@dataclass(frozen=True, slots=True)
class Segment:
    """Prompt tokens at positions `begin` to `end` that the same prompts share; the shortest of these has `shortest`."""

    begin: int
    end: int
    users: int  # prompts
    shortest: int


def segments(prompts: Iterable[Sequence[int]]) -> list[Segment]:
    """The prefix tree of the prompts, each token of it once."""
    found: list[Segment] = []
    open_parts = [(0, sorted(prompts))]
    while open_parts:
        begin, part = open_parts.pop()
        first, last = part[0], part[-1]
        end = next((i for i in range(begin, len(first)) if i >= len(last) or first[i] != last[i]), len(first))
        if end > begin:
            found.append(Segment(begin, end, len(part), min(map(len, part))))
        longer = [prompt for prompt in part if len(prompt) > end]
        open_parts += [(end, list(group)) for _, group in groupby(longer, key=lambda prompt: prompt[end])]
    return sorted(found, key=lambda segment: (segment.begin, segment.end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Attention of one layer over a whole workload, in pairs of a token and one that it sees."""

    prefill: int
    shared: int  # decodes, over prompt tokens that another sequence has as well
    own: int  # decodes, over the others
    reads: int  # tokens whose keys and values some decode of a step sees, summed over the steps


def contexts(work: Work, tree: Sequence[Segment], window: int | None) -> Contexts:
    """Token t of an answer sees the prompt and itself back to the window. The last token of an answer runs nowhere."""
    steps = work.new_tokens - 1
    wide = window or max(map(len, work.prompts)) + work.new_tokens
    prefill = sum(_clipped_sum(segment.begin + 1, segment.end + 1, wide) for segment in tree)
    shared = own = reads = 0
    for prompt, meets in zip(work.prompts, shared_lengths(work), strict=True):
        for step in range(steps):
            end = len(prompt) + step + 1
            first = max(0, end - wide)
            of_shared = max(0, meets - first)
            shared += of_shared * work.num_samples
            own += (end - first - of_shared) * work.num_samples
            reads += min(step + 1, wide) * work.num_samples
    for segment in tree:
        # Position p is seen at step t by the shortest of its prompts if by any: p > shortest + t - wide.
        reads += sum(
            max(0, min(steps, position - segment.shortest + wide)) for position in range(segment.begin, segment.end)
        )
    return Contexts(prefill=prefill, shared=shared, own=own, reads=reads)


def shared_lengths(work: Work) -> list[int]:
    """For each prompt: how many of its first tokens another sequence has as well."""
    if work.num_samples > 1:
        return [len(prompt) for prompt in work.prompts]
    ordered = sorted(range(len(work.prompts)), key=lambda row: work.prompts[row])
    lengths = [0] * len(ordered)
    for left, right in pairwise(ordered):
        common = _common(work.prompts[left], work.prompts[right])
        lengths[left] = max(lengths[left], common)
        lengths[right] = max(lengths[right], common)
    return lengths


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _clipped_sum(begin: int, end: int, most: int) -> int:
    """The sum of min(i, most) for i from `begin` to before `end`."""
    return sum(min(i, most) for i in range(begin, end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured: GFLOP/s of products by (inputs, outputs) and rows, of attention by kind, and GB/s."""

    products: dict[tuple[int, int], dict[int, float]]
    prefill: float
    shared: float
    own: float
    bandwidth: float

    def product(self, product: Product, most_rows: int) -> float:
        """The best of the batches up to the first that was measured with `most_rows` or more."""
        rates = self.products[product.inputs, product.outputs]
        enough = min((rows for rows in rates if rows >= most_rows), default=max(rates))
        return max(rate for rows, rate in rates.items() if rows <= enough)


def limit(shape: ModelShape, work: Work, rates: Rates) -> dict[str, float]:
    """Seconds by part; their sum is the limit."""
    tree = segments(work.prompts)
    prompt_tokens = sum(segment.end - segment.begin for segment in tree)
    steps = work.new_tokens - 1
    decodes = work.num_outputs * steps
    most_decodes = max(work.num_outputs, (prompt_tokens + decodes) // work.new_tokens)  # rows in a mixed step
    distinct = len(set(map(tuple, work.prompts)))

    def longer(flops: float, gflop_s: float, num_bytes: float) -> float:
        return max(flops / gflop_s, num_bytes / rates.bandwidth) / 1e9

    def products(tokens: int, most_rows: int, passes: int) -> float:
        return sum(
            longer(one.flops * tokens, rates.product(one, most_rows), one.weight_bytes * passes)
            for one in shape.products
        )

    def head(rows: int, most_rows: int, passes: int) -> float:
        return longer(shape.head.flops * rows, rates.product(shape.head, most_rows), shape.head.weight_bytes * passes)

    def unread(tokens: int) -> float:
        """What their last layer would take."""
        rates_of_queries = [rates.product(one, prompt_tokens) for one in shape.products]
        flops = (one.flops * tokens / rate for one, rate in zip(shape.queries, rates_of_queries, strict=True))
        return sum(flops) / 1e9

    seen = [(contexts(work, tree, window), layers) for window, layers in shape.windows]
    pair = shape.attention_flops
    return {
        "prefill_products": products(prompt_tokens, prompt_tokens, 1) - unread(prompt_tokens - distinct),
        "decode_products": products(decodes, most_decodes, steps),
        "head": head(distinct, distinct, 1) + head(decodes, work.num_outputs, steps),
        "prefill_attention": sum(pair * one.prefill * layers / rates.prefill for one, layers in seen) / 1e9,
        "decode_attention": sum(
            layers
            * max(
                pair * (one.shared / rates.shared + one.own / rates.own) / 1e9,
                shape.kv_bytes * one.reads / rates.bandwidth / 1e9,
            )
            for one, layers in seen
        ),
    }
