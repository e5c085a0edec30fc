"""A long run of the state machine of shards, with other moves every time; a failure prints its moves."""

import pytest
from hypothesis import HealthCheck, settings

from tests.conformance.shard_machine import ShardMachine

TestAnyOrderOfMovesKeepsTheLaws = pytest.mark.slow(ShardMachine.TestCase)
TestAnyOrderOfMovesKeepsTheLaws.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
