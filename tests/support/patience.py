"""How long a test waits for what must come: far longer than it takes, as machines are busy."""

PATIENCE_S = 60.0
"""A test that waits so long has failed; one that passes waits only as long as it must."""
