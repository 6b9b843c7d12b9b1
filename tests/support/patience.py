"""How long a test waits for what must come: far longer than it takes, as machines are busy."""

import asyncio

PATIENCE_S = 60.0
"""A test that waits so long has failed; one that passes waits only as long as it must."""


async def error_of(source, kind, others):
    """The first error of a kind that reading a device raises; `others` are waited over."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await source.read()
            except kind as error:
                return error
            except others:
                pass
            await asyncio.sleep(0.01)
