"""
A gateway that holds a setpoint on a device without a reversion timer: for tests of the watchdog.

    python gateway_stand_in.py FOLDER PORT LEASE_S hold | renew | beat | help

`hold` puts one lease and goes on living; `renew` renews it and does as a gateway shall; `beat` only
says that it lives, `help` also restores what the watchdog cannot reach. It prints a line for each
thing that happens.
"""

import asyncio
import sys
from pathlib import Path

from hem.gateway.leases import BOOK, Lease, LeaseBook, LeaseRefusedError, lease_end
from hem.gateway.links import Connection, link_for
from hem.gateway.watchdog import make_neutral

MODE, POWER = 100, 101
NEUTRAL = ((POWER, (0,)), (MODE, (0,)))


def lease_of(port, lease_s, device="battery"):
    return Lease(
        device=device,
        connection=Connection(host="127.0.0.1", port=port),
        device_id=1,
        neutral=NEUTRAL,
        proof=NEUTRAL,
        ends_at_s=lease_end(lease_s),
        timeout_s=2.0,
    )


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(folder, port, lease_s, how):
    book = LeaseBook(Path(folder) / BOOK)
    link = link_for(Connection(host="127.0.0.1", port=port), 20.0)
    await book.put(lease_of(port, lease_s))
    await link.write(1, MODE, [2, 1500])
    say("held")

    async def restore(device):
        if how == "help":
            await make_neutral(link, lease_of(port, lease_s))
            await book.clear(device)
            say("helped")

    if how in ("beat", "help"):
        await book.keep_beating(restore)
    while how == "hold":
        await asyncio.sleep(1)
    while True:
        await asyncio.sleep(0.3)
        try:
            await book.put(lease_of(port, lease_s))
        except LeaseRefusedError as error:
            say(f"refused: {error}")
            await make_neutral(link, lease_of(port, lease_s))
            await book.clear("battery")
            say("neutral")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
