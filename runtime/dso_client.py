"""
A participant's line to the DSO: withdraw to an address, look at the account (`wire.withdrawal`);
an aggregator's: have a schedule approved (`wire.day_ahead`).

Over the participant's own lane, never a trading lane: who asks for which address is between the two
of them.
"""

from __future__ import annotations

from typing import Any

from runtime.csmdb_client import CsmDbClient
from runtime.ports import Bus, Clock, Rng
from wire import topics
from wire.day_ahead import APPROVE_SCHEDULE, Row, ScheduleAnswer, ScheduleRequest, read_approval
from wire.keys import BoxKey, SigningKey, to_text
from wire.withdrawal import SHOW_ACCOUNT, WITHDRAW_ASSETS


class DsoClient:
    """
    Args:
        bus: the participant's lane
        key, box: the EMS key (a service: its own), and what answers are sealed to
        dso_key, dso_box: the supervisor's key and the DSO's box key, from the genesis
    """

    def __init__(
        self,
        bus: Bus,
        key: SigningKey,
        box: BoxKey,
        market: str,
        dso_key: bytes,
        dso_box: bytes,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._key = to_text(key.public)
        self._line = CsmDbClient(
            bus, key, box, market, dso_key, dso_box, clock, rng,
            kinds=(topics.DSO_REQ, topics.DSO_RSP),
        )  # fmt: skip

    async def withdraw_assets(
        self,
        withdrawal: str,
        address: str,
        amount_uc: int = 0,
        assets: list[dict[str, Any]] | None = None,
    ) -> str:
        """
        Have money and energy moved to an address.

        Args:
            withdrawal: our name for it; asking again under the same name has no second effect
            address: registered on the ledger
            amount_uc: money [µ¤]
            assets: {kind, energyWh, startSlot, endSlot}, energy per slot [Wh]

        Returns:
            "sent", or "done" when all of it is on the ledger.

        Raises:
            CsmDbRefusedError: the withdrawal failed; `reason` says why.
            TimeoutError: no answer.
        """
        asked = {
            "withdrawal": withdrawal, "address": address, "amountUc": amount_uc,
            "assets": assets or [], "key": self._key,
        }  # fmt: skip
        answer = await self._line.ask(WITHDRAW_ASSETS, asked)
        return str(answer["status"])

    async def show_account(self) -> dict[str, Any]:
        """
        Our account with the DSO: `{balanceUc, owedUc, withdrawn}`.

        Raises:
            CsmDbRefusedError, TimeoutError.
        """
        return await self._line.ask(SHOW_ACCOUNT, {"key": self._key})

    async def approve_schedule(self, slots: list[Row]) -> ScheduleAnswer:
        """
        Have the feeder's schedule approved; for an aggregator.

        Args:
            slots: (slot, net energy [Wh]), slots rising, at most `wire.day_ahead.MAX_SLOTS`

        Returns:
            The same slots as approved, with the reason of every change.

        Raises:
            CsmDbRefusedError: refused; `reason` says why.
            MalformedError: the answer is not one.
            TimeoutError: no answer.
        """
        asked = ScheduleRequest(slots)
        rows = [list(row) for row in slots]
        answer = await self._line.ask(APPROVE_SCHEDULE, {"slots": rows, "key": self._key})
        return read_approval(answer, asked)
