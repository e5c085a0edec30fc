"""A short run of the state machine of shards; `tests/faults` has the long one, which also shrinks what it finds."""

from hypothesis import Phase, settings

from tests.conformance.shard_machine import ShardMachine

TestAnyOrderOfMovesKeepsTheLaws = ShardMachine.TestCase
TestAnyOrderOfMovesKeepsTheLaws.settings = settings(
    max_examples=5, stateful_step_count=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
