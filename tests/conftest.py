"""
Shared by all tests: `import support.…` finds the helpers in tests/support.

Hypothesis takes the same examples each time, so that a change that passed does not fail by chance;
`make properties` looks for new ones, `SEARCHED` of them for each property. A property that wants
more than 100 in `make test` asks for the larger of two numbers,
`settings(max_examples=max(400, settings().max_examples))`; one that states a number alone is too
slow for thousands.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import structlog
from hypothesis import HealthCheck, settings

SEARCHED = 2_000
SCREENSHOTS = Path(__file__).parents[1] / "docs" / "qa" / "screenshots.py"

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


@pytest.fixture(scope="session")
def shots() -> ModuleType:
    """The screenshot script, when browser and driver are there."""
    pytest.importorskip("selenium.webdriver.chrome.webdriver", reason="selenium is not complete")
    spec = importlib.util.spec_from_file_location("screenshots", SCREENSHOTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for program in (module.CHROMIUM, module.CHROMEDRIVER):
        if not program.exists():
            pytest.skip(f"{program} is missing (apt-get install chromium chromium-driver)")
    return module
