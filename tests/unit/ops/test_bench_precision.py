"""What other types are asked, so that one token that differs does not decide about all that follow."""

from ops.bench.precision import forced
from ops.bench.work import Work


def test_every_beginning_of_every_answer_is_asked_for_one_token_more() -> None:
    work = Work(prompts=[[1, 2], [3]], new_tokens=2)

    asked = forced(work, [[10, 11], [12, 13]])

    assert asked.prompts == [[1, 2], [1, 2, 10], [3], [3, 12]]
    assert asked.new_tokens == 1
