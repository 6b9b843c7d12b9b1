"""
Shared by all tests: `import support.…` finds the helpers in tests/support.

Hypothesis takes the same examples each time, so that a change that passed does not fail by chance;
`make properties` looks for new ones, `SEARCHED` of them for each property. A property that wants
more than 100 in `make test` asks for the larger of two numbers,
`settings(max_examples=max(400, settings().max_examples))`; one that states a number alone is too
slow for thousands.
"""

import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

SEARCHED = 2_000

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile(
    "search",
    max_examples=SEARCHED,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def logs_as_before():
    """A command that was run in a test sets the log's level: not for the tests after it."""
    before = structlog.get_config()
    processors = list(before["processors"])
    yield
    structlog.configure(**{**before, "processors": processors})
