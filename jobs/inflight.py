"""The rows of one attempt between its plan and its results: refused, in the engine, or finished."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Set

from engine.request import Completion, Request
from jobs.junctions import RowPlan
from jobs.planrows import PlanRow, make_request
from jobs.prompts import PromptEncoder
from jobs.rows import RowMaker
from storage.parquet.rows import ResultRow

log = logging.getLogger(__name__)

INTERNAL = "internal"  # the error code of a row on which our own code fails


class InFlight:
    """`requests` runs in the engine's thread, `finish` in the attempt's. A row that our code cannot deal with ends as
    an error of its own; its neighbours go on."""

    def __init__(
        self, rows: RowMaker, encoder: PromptEncoder, sealed: Set[tuple[int, int]], *, prefix: str, job: str
    ) -> None:
        """`sealed` has the (row_index, sample_index) of finished rows; `prefix` makes request ids unique."""
        self.wasted_tokens = 0
        self._rows = rows
        self._encoder = encoder
        self._sealed = sealed
        self._prefix = prefix
        self._job = job
        self._open: dict[str, tuple[PlanRow, int]] = {}  # request id -> its row, samples still to come
        self._refused: deque[tuple[PlanRow, str, str]] = deque()  # with code and message

    def requests(self, rows: Iterable[tuple[PlanRow, RowPlan]]) -> Iterator[Request]:
        """Pulled by the engine as it has room."""
        for row, plan in rows:
            if row.error_code:
                self._refused.append((row, row.error_code, row.error_message or ""))
                continue
            request_id = f"{self._prefix}.{row.row_index}"
            try:
                request = make_request(row, plan, request_id, self._job, self._encoder)
            except Exception as error:  # our mistake: this row alone ends
                log.exception("request_failed row=%d", row.row_index)
                self._refused.append((row, INTERNAL, f"its request could not be made: {error!r}"))
                continue
            self._open[request_id] = (row, row.sampling.num_samples)
            yield request

    def finish(self, completions: Iterable[Completion]) -> list[ResultRow]:
        """The rows of these completions and those that were refused meanwhile."""
        rows: list[ResultRow] = []
        while self._refused:
            rows += self._refuse(*self._refused.popleft())
        for completion in completions:
            row, left = self._open.pop(completion.request_id)
            if left > 1:
                self._open[completion.request_id] = (row, left - 1)
            if completion.finish_reason == "abort" or (row.row_index, completion.sample_index) in self._sealed:
                spent = completion.counters  # a sample that is sealed already ran again for the sake of a sibling
                self.wasted_tokens += spent.computed_tokens + spent.forked_tokens + spent.completion_tokens
            else:
                rows.append(self._finished(row, completion))
        return rows

    def _refuse(self, row: PlanRow, code: str, message: str) -> Iterator[ResultRow]:
        """What submit refused has one result; what failed here has one for each sample that is still open."""
        for sample in range(1 if row.error_code else row.sampling.num_samples):
            if (row.row_index, sample) not in self._sealed:
                yield self._rows.failed(row, sample, code, message)

    def _finished(self, row: PlanRow, completion: Completion) -> ResultRow:
        try:
            return self._rows.finished(row, completion)
        except Exception as error:  # our mistake: this row alone ends
            log.exception("row_failed row=%d sample=%d", row.row_index, completion.sample_index)
            message = f"its text could not be made: {error!r}"
            return self._rows.failed(row, completion.sample_index, INTERNAL, message)
