"""Which requests can never run: found when they are submitted, so that each fails alone."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.manager import KVCache
from engine.errors import RequestRefused
from engine.request import Request

TOO_LONG = "context_length"  # the error code of a request that is sound but for its length


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a request must keep to."""

    cache: KVCache
    max_model_len: int
    vocab_size: int | None

    def check(self, request: Request) -> None:
        """Raise RequestRefused if the request can never run."""
        sampling = request.sampling
        if not len(request.prompt):
            raise RequestRefused("invalid_request", f"request {request.request_id!r} has an empty prompt")
        if sampling.max_tokens < 1 or sampling.num_samples < 1:
            message = f"request {request.request_id!r}: max_tokens and num_samples must be at least 1"
            raise RequestRefused("invalid_request", message)
        problem = sampling.problem() or _problem_of_plan(request)
        if problem is not None:
            raise RequestRefused("invalid_request", f"request {request.request_id!r}: {problem}")
        if self.vocab_size is not None and not (0 <= min(request.prompt) <= max(request.prompt) < self.vocab_size):
            message = f"request {request.request_id!r} has a token id outside 0..{self.vocab_size - 1}"
            raise RequestRefused("invalid_request", message)
        length = len(request.prompt) + sampling.max_tokens
        wanted = f"request {request.request_id!r} needs {len(request.prompt)} prompt + {sampling.max_tokens} new tokens"
        if length > self.max_model_len:
            raise RequestRefused(TOO_LONG, f"{wanted}; the model takes {self.max_model_len}")
        if not self.cache.could_fit(length - 1):  # the last token is never run
            raise RequestRefused(TOO_LONG, f"{wanted}; the KV cache is too small for it, even when empty")


def _problem_of_plan(request: Request) -> str | None:
    length = len(request.prompt)
    if not 0 <= request.planned_tokens < length:
        return f"planned_tokens is {request.planned_tokens}, but the prompt has {length}"
    for junction in request.junctions:
        if not (0 < junction.length <= length and junction.num_users > 0):
            return f"{junction} has no meaning in a prompt of {length} tokens"
    return None
