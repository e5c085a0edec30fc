"""The conformance suite on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage import migrate
from storage.repository import Repository
from tests.conformance.control import *  # noqa: F403
from tests.conformance.crew import *  # noqa: F403
from tests.conformance.damage import *  # noqa: F403
from tests.conformance.deadlines import *  # noqa: F403
from tests.conformance.history import *  # noqa: F403
from tests.conformance.jobs import *  # noqa: F403
from tests.conformance.parallel import *  # noqa: F403
from tests.conformance.redeclared import *  # noqa: F403
from tests.conformance.retries import *  # noqa: F403
from tests.conformance.runs import *  # noqa: F403
from tests.conformance.schedules import *  # noqa: F403
from tests.conformance.schema import *  # noqa: F403
from tests.conformance.segments import *  # noqa: F403
from tests.conformance.shards import *  # noqa: F403
from tests.conformance.suspects import *  # noqa: F403

pytestmark = pytest.mark.integration


@pytest.fixture
def empty_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def repository(postgres_url: str) -> Iterator[Repository]:
    migrate.upgrade(postgres_url)
    repository = Repository(postgres_url)
    yield repository
    repository.close()
