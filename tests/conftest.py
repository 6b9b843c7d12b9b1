"""
Shared by all tests: `import support.…` finds the helpers in tests/support.

Hypothesis takes the same examples each time, so that a change that passed does not fail by chance;
`make properties` looks for new ones.
"""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("search", print_blob=True, deadline=None)
settings.load_profile("fixed")
