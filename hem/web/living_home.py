"""The home that runs, as its page sees it (`hem.web.port`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hem.backup import back_up
from hem.config import Device
from hem.ems.daylog import DayRow
from hem.ems.standing import Standing
from hem.summary import in_words, markets_of, with_fates
from hem.web.port import Account, DeviceFacts, Expected, Moment, Nameplate, PlanRow, Tariff
from wire.slots import SlotGrid

if TYPE_CHECKING:
    from hem.service import HomeEnergyManager

ASK_EVERY_S = 2.0
"""However many look at the page, the gateway is not asked more often [real s]."""


def no_plan() -> Sequence[PlanRow]:
    """A home that does not plan ahead."""
    return ()


class LivingHome:
    """
    A home for its page.

    Args:
        home: read, and never changed
        plan: the plan that holds
    """

    policy_at_once = True

    def __init__(
        self, home: HomeEnergyManager, plan: Callable[[], Sequence[PlanRow]] = no_plan
    ) -> None:
        self._home = home
        self._asked_s = float("-inf")
        self._fresh = False
        self.plan = plan

    @property
    def name(self) -> str:
        """By the provisioning file."""
        return self._home.config.home.name

    @property
    def grid(self) -> SlotGrid:
        """The market's slots."""
        return self._home.grid

    @property
    def tariff(self) -> Tariff:
        """By the genesis."""
        prices = self._home.genesis.prices
        return Tariff(prices.retail_uc_per_kwh, prices.feed_in_uc_per_kwh)

    @property
    def validator(self) -> str:
        """By the provisioning file."""
        validator = self._home.config.validator
        return "" if validator is None else validator.id

    @property
    def policy_file(self) -> Path:
        """By the provisioning file."""
        return self._home.config.policy.file

    def now_ms(self) -> int:
        """Market time."""
        return self._home.clock.now_ms()

    async def moment(self) -> Moment:
        """How the home is now."""
        state, fresh = await self._state()
        slot, now_ms = self.grid.slot_at(self.now_ms()), self.now_ms()
        position = self._home.wallet.position(slot) if self._trades else None
        return Moment(
            time_ms=now_ms,
            fresh=fresh,
            grid_w=int(state.get("grid_w", 0)),
            pv_w=int(state.get("pv_w", 0)),
            battery_w=int(state.get("battery_w", 0)),
            load_w=int(state.get("load_w", 0)),
            soc_permille=int(state.get("soc_permille", -1)),
            price_uc_per_kwh=self.price(slot),
            bought_wh=0 if position is None else position.bought_wh,
            sold_wh=0 if position is None else position.sold_wh,
            balance_uc=self.account().balance_uc,
            health=self._home.health(),
        )

    def day(self, first_slot: int, last_slot: int) -> Sequence[DayRow]:
        """From the day log."""
        return self._home.day.rows(first_slot, last_slot)

    def expected(self, first_slot: int, last_slot: int) -> Sequence[Expected]:
        """From the forecaster."""
        forecasts = (
            (slot, self._home.forecaster.forecast(slot))
            for slot in range(first_slot, last_slot + 1)
        )
        return [
            Expected(slot, found.load_wh, found.pv_wh)
            for slot, found in forecasts
            if found.ahead_wh  # else the rest of the day is a guess
        ]

    def account(self) -> Account:
        """From the wallet; nothing before the home trades."""
        if not self._trades:
            return Account("", 0, 0)
        balance = self._home.wallet.balance
        return Account(self._home.wallet.address, balance["balanceUc"], balance["lockedUc"])

    def settlements(self, last: int | None) -> Sequence[Mapping[str, Any]]:
        """From the wallet."""
        return self._home.wallet.settlements(last) if self._trades else []

    def decisions(self, last: int) -> Sequence[Mapping[str, Any]]:
        """From the decision log, in words."""
        if not self._trades:
            return self._home.decisions.latest(last)
        rows, wallet = self._home.decisions.latest(last), self._home.wallet
        settled = wallet.settlements(2 * last)
        return [{**row, "text": in_words(row)} for row in with_fates(rows, wallet, settled)]

    def contracted(self, slot: int) -> Mapping[str, Mapping[str, int]]:
        """From the wallet."""
        return markets_of(self._home.wallet, slot) if self._trades else {}

    def price(self, slot: int) -> int | None:
        """From the wallet."""
        return self._home.wallet.price(slot) if self._trades else None

    def standings(self) -> Sequence[Standing]:
        """From the ledger's events."""
        return self._home.standings.ranked()

    def devices(self) -> Sequence[DeviceFacts]:
        """From the provisioning file and the gateway's last word."""
        told = self._home.facts().devices
        return [
            DeviceFacts(
                name=device.name,
                kind=device.template or device.kind,
                where=_where(device),
                status=told.get(device.name, ""),
            )
            for device in self._home.config.devices
        ]

    def nameplate(self) -> Nameplate:
        """From the provisioning file and the battery's own word."""
        battery = self._home.state.get("battery") or {}
        return Nameplate(
            connection_w=self._home.config.gateway.max_power_w,
            battery_wh=int(battery.get("capacity_wh", 0)),
            charge_w=int(battery.get("max_charge_w", 0)),
            discharge_w=int(battery.get("max_discharge_w", 0)),
        )

    def back_up(self, target: Path) -> None:
        """As `hem backup` does."""
        back_up(self._home.config.home.data_dir, target, self.name, self.now_ms())

    @property
    def _trades(self) -> bool:
        """There is an address, and its wallet."""
        return self._home.grant is not None

    async def _state(self) -> tuple[dict[str, Any], bool]:
        """What the gateway says, and whether it said so just now."""
        now_s = self._home.clock.monotonic_s()
        if now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            self._fresh = await self._home.look()
        return self._home.state, self._fresh


def _where(device: Device) -> str:
    """Its connection, in words; never what a template's own keys hold."""
    if device.connection == "rtu":
        return device.path
    return f"{device.host}, port {device.port}"
