"""A model without weights and an engine without a model: the same surface as the real ones, results from a hash.

The fake engine never imports torch. A token id is a pure function of (prompt, seed, sample, position), so a checker can
tell whether a row's output is its own. Faults are named in the environment of the worker process:

FAKE_ENGINE_ROWS_PER_SECOND  speed of the whole engine; unset means as fast as it goes
FAKE_ENGINE_KILL             a prompt that contains this text (as token ids of the fake model) kills the process
FAKE_ENGINE_DIE              ... ends the engine's loop with an error
FAKE_ENGINE_HANG             ... lets a step hang for ever
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.cache.groups import LayerGroup
from engine.errors import ConfigError, EngineDead, ModelRefused
from engine.feed import Feed
from engine.request import Completion, Counters, GroupCounters, Request, SamplingParams
from engine.stats import BlockUse
from jobs.settings import Settings

EOS = 256
SPACE = 220  # the id of a blank; printable ASCII has the ids from 0 on
BLOCK_SIZE = 16


def make_fake_model(folder: Path, max_model_len: int = 4096) -> Path:
    """A directory that tokenizer and worker take for a model: one token per byte, and an end token."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {"<eos>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "fake",
        "vocab_size": EOS + 1,
        "max_position_embeddings": max_model_len,
        "eos_token_id": EOS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def fake_ids(
    prompt: Sequence[int], sampling: SamplingParams, sample_index: int, vocab_size: int = EOS + 1
) -> tuple[int, ...]:
    """What the fake engine generates, at least one token: small letters, in the alphabet of the fake model."""
    max_tokens, seed = sampling.max_tokens, sampling.seed
    text = ",".join(map(str, prompt)) + f"|{seed}|{sample_index}"
    digest = hashlib.shake_256(text.encode()).digest(max_tokens + 1)
    length = max_tokens if sampling.ignore_eos else 1 + digest[-1] % max_tokens
    first, span = (64, 26) if vocab_size >= 90 else (vocab_size // 2, vocab_size - vocab_size // 2)
    return tuple(first + byte % span for byte in digest[:length])


def fake_counters(prompt: Sequence[int], sample_index: int, num_tokens: int) -> Counters:
    """Counters that add up and that a recount can tell from zero."""
    cached = len(prompt) // 2
    blocks = -(-(len(prompt) + num_tokens) // BLOCK_SIZE)
    first = sample_index == 0
    limits = {"block size": len(prompt) - cached - 1, "last token": 1}
    return Counters(
        prompt_tokens=len(prompt) if first else 0,
        cached_tokens=cached if first else 0,
        computed_tokens=len(prompt) - cached if first else 0,
        forked_tokens=0 if first else len(prompt),
        completion_tokens=num_tokens,
        planned_tokens=len(prompt) - 1 if first else 0,
        limited_by=tuple((name, tokens) for name, tokens in limits.items() if first and tokens > 0),
        engine_seconds=0.001,
        groups=(GroupCounters(allocated=blocks, shared=cached // BLOCK_SIZE), GroupCounters(allocated=min(blocks, 3))),
    )


class FakeEngine:
    """One thread that ends sequences one after another, in the order in which it pulled them."""

    groups = (
        LayerGroup(
            index=0,
            kind="full",
            layers=(0,),
            block_size=BLOCK_SIZE,
            window=None,
            num_kv_heads=1,
            key_dim=8,
            value_dim=8,
        ),
        LayerGroup(
            index=1,
            kind="sliding",
            layers=(1, 2),
            block_size=BLOCK_SIZE,
            window=32,
            num_kv_heads=1,
            key_dim=8,
            value_dim=8,
        ),
    )

    def __init__(
        self,
        *,
        max_sequences: int = 64,
        rows_per_second: float | None = None,
        kill: bytes = b"",
        die: bytes = b"",
        hang: bytes = b"",
        vocab_size: int = EOS + 1,
        max_model_len: int | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._max_sequences = max_sequences
        self._pause = 1.0 / rows_per_second if rows_per_second else 0.0
        self._kill, self._die, self._hang = _ids(kill), _ids(die), _ids(hang)
        self._lock = threading.Lock()
        self._feeds: list[Feed] = []
        self._waiting: deque[tuple[Feed, Request, int]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._death: EngineDead | None = None
        self._last_sign = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="fake-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def feed(self, requests: Iterable[Request]) -> Feed:
        feed = Feed(requests, self._wake.set)
        with self._lock:
            if self._death is not None or self._stopping:
                raise self._death or EngineDead("the engine was stopped")
            self._feeds.append(feed)
        self._wake.set()
        return feed

    @property
    def alive(self) -> bool:
        return self._death is None and not self._stopping

    @property
    def load(self) -> int:
        return len(self._waiting)

    def last_step_age(self) -> float:
        return time.monotonic() - self._last_sign

    def block_use(self, job: str) -> tuple[BlockUse, ...]:
        return (BlockUse(peak=8.0, mean=4.0), BlockUse(peak=3.0, mean=2.0))

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._pull()
                self._last_sign = time.monotonic()
                if self._waiting:
                    self._finish_one()
                else:
                    self._wake.wait(0.05)
                    self._wake.clear()
            self._abort(None)
        except Exception as error:  # noqa: BLE001 - as the real loop: it ends, and everybody is told
            self._death = EngineDead(str(error))
            for feed in self._feeds:
                feed.close(self._death)

    def _pull(self) -> None:
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            if feed.is_cancelled:
                self._abort(feed)
            while feed.has_more and len(self._waiting) < self._max_sequences:
                request = feed.pull()
                if request is not None:
                    feed.opened(request.sampling.num_samples)
                    self._waiting.extend((feed, request, sample) for sample in range(request.sampling.num_samples))
        with self._lock:
            self._feeds = [feed for feed in self._feeds if not feed.is_closed]

    def _finish_one(self) -> None:
        feed, request, sample_index = self._waiting[0]
        if self._pause:
            time.sleep(self._pause)
        if _contains(request.prompt, self._kill):
            os.kill(os.getpid(), signal.SIGKILL)
        if _contains(request.prompt, self._die):
            raise RuntimeError("the fake engine was asked to die")
        if _contains(request.prompt, self._hang):
            threading.Event().wait()
        self._waiting.popleft()
        feed.deliver(self._completion(request, sample_index))

    def _completion(self, request: Request, sample_index: int) -> Completion:
        sampling = request.sampling
        wanted = len(request.prompt) + sampling.max_tokens
        if self._max_model_len is not None and wanted > self._max_model_len:
            return Completion(
                request_id=request.request_id,
                job=request.job,
                sample_index=sample_index,
                token_ids=(),
                finish_reason="error",
                error_code="context_length",
                error_message=f"{wanted} tokens; the model takes {self._max_model_len}",
            )
        ids = fake_ids(request.prompt, sampling, sample_index, self._vocab_size)
        reason = "length" if len(ids) == sampling.max_tokens else "stop"
        stop = request.make_stop() if request.make_stop else None
        for position, token in enumerate(ids):
            if stop is not None and stop(token):
                ids, reason = ids[: position + 1], "stop"
                break
        return Completion(
            request_id=request.request_id,
            job=request.job,
            sample_index=sample_index,
            token_ids=ids,
            finish_reason=reason,
            stop_token_id=EOS if reason == "stop" and stop is None else None,
            cumulative_logprob=-float(len(ids)),
            counters=fake_counters(request.prompt, sample_index, len(ids)),
        )

    def _abort(self, feed: Feed | None) -> None:
        """End the sequences of a feed, or of all."""
        for owner in self._feeds if feed is None else [feed]:
            owner.close()
        kept: deque[tuple[Feed, Request, int]] = deque()
        for owner, request, sample_index in self._waiting:
            if feed is not None and owner is not feed:
                kept.append((owner, request, sample_index))
                continue
            owner.deliver(
                Completion(
                    request_id=request.request_id,
                    job=request.job,
                    sample_index=sample_index,
                    token_ids=(),
                    finish_reason="abort",
                )
            )
        self._waiting = kept


def fake_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.fakes:fake_engine"""
    speed = os.environ.get("FAKE_ENGINE_ROWS_PER_SECOND")
    config = json.loads((model_dir / "config.json").read_text())
    return FakeEngine(
        max_sequences=settings.max_sequences,
        rows_per_second=float(speed) if speed else None,
        kill=os.environb.get(b"FAKE_ENGINE_KILL", b""),
        die=os.environb.get(b"FAKE_ENGINE_DIE", b""),
        hang=os.environb.get(b"FAKE_ENGINE_HANG", b""),
        vocab_size=config.get("vocab_size", EOS + 1),
        max_model_len=config.get("max_position_embeddings"),
    )


def _ids(text: bytes) -> tuple[int, ...]:
    """The fake model's ids of printable ASCII, in which sorting by symbol is sorting by byte."""
    return tuple(byte - 33 if byte > 32 else SPACE for byte in text)


def _contains(prompt: Sequence[int], marker: Sequence[int]) -> bool:
    size = len(marker)
    return size > 0 and any(tuple(prompt[i : i + size]) == tuple(marker) for i in range(len(prompt) - size + 1))


def refusing_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.fakes:refusing_engine"""
    raise ModelRefused(f"the model has a layer of kind 'quantum', which nobody can serve in {settings.dtype}")


def misconfigured_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.fakes:misconfigured_engine"""
    raise ConfigError("cache_bytes is 7, which holds no block; raise it")
