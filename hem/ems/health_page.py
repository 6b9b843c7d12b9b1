"""
`/api/health` and `/metrics`: how the home is, for monitoring.

`/api/health` answers 200 while the home is ok or degraded and 503 when it is failing. Nothing here
names the home's address on the ledger; `/metrics` tells its balance. Who may ask is the page's
business (`hem.web.app`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import REGISTRY, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hem.ems.health import LEVELS, Facts, assess
from hem.ems.light import LightState
from runtime.http import SecurityHeaders

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NAMES = {
    "grid_w": ("grid_watts", "Power at the connection point, import positive"),
    "pv_w": ("pv_watts", "Generation"),
    "battery_w": ("battery_watts", "Battery power, discharge positive"),
    "load_w": ("load_watts", "Consumption of the home"),
    "soc_permille": ("battery_soc_permille", "State of charge"),
    "import_wh": ("import_wh", "Energy imported since installation"),
    "export_wh": ("export_wh", "Energy exported since installation"),
    "generation_wh": ("generation_wh", "Energy generated since installation"),
    "balance_uc": ("balance_microcredits", "Free money on the ledger"),
    "locked_uc": ("locked_microcredits", "Locked money on the ledger"),
}


def application(facts_of: Callable[[], Facts]) -> SecurityHeaders:
    """The endpoint; `facts_of` tells what is known now."""
    registry = CollectorRegistry()
    registry.register(_Home(facts_of))

    async def health(_request: Request) -> Response:
        facts = facts_of()
        found = assess(facts)
        return JSONResponse(found.to_json(facts), 503 if found.level == "failing" else 200)

    async def metrics(_request: Request) -> Response:
        return Response(
            generate_latest(REGISTRY) + generate_latest(registry),
            headers={"content-type": CONTENT_TYPE},
        )

    routes = [Route("/api/health", health), Route("/metrics", metrics)]
    return SecurityHeaders(Starlette(routes=routes), HEADERS)


class _Home(Collector):
    """The facts as gauges, read when Prometheus asks."""

    def __init__(self, facts_of: Callable[[], Facts]) -> None:
        self._facts_of = facts_of

    def collect(self) -> Iterator[Metric]:
        facts = self._facts_of()
        level, light = LEVELS.index(assess(facts).level), facts.light
        for name, text, value in (
            ("health", "0 ok, 1 degraded, 2 failing", level),
            ("trading", "1 while the home trades", facts.trading),
            ("home_lane_connected", "1 while the home's lane stands", facts.home_connected),
            ("trade_lane_connected", "1 while the trading lane stands", facts.trade_connected),
            ("last_read_slot", "Slot of the last signed reading", facts.last_read_slot),
            ("slots_unread", "Slots ended since the last reading", facts.slots_unread),
            ("block_height", "Height of the block read last", facts.height),
            ("verified_height", "Of the newest header that proves", light.verified_height),
            ("balance_proved", "1 while it is what we believe", light.state is LightState.SAME),
            ("proved_balance_microcredits", "Free money by proof", light.balance_uc),
            ("certificate_days", "Days until the certificate ends", facts.certificate_days),
            ("grant_slots", "Slots until the address' grant ends", facts.grant_slots_left),
            ("waiting_readings", "Readings not sent yet", facts.waiting_readings),
            ("waiting_operations", "Operations not final yet", facts.waiting_operations),
            ("disk_free_bytes", "Room in the data folder", facts.disk_free_bytes),
        ):
            yield GaugeMetricFamily(f"hearthgrid_hem_{name}", text, value=float(value))
        devices = GaugeMetricFamily(
            "hearthgrid_hem_device_ok", "1 while the device answers", labels=["device"]
        )
        for device, status in facts.devices.items():
            devices.add_metric([device], float(status == "ok"))
        yield devices
        for key, value in facts.figures.items():
            if key in NAMES or key.startswith("forecast_"):
                name, text = NAMES.get(key, (key, "Running skill of the home's forecasts"))
                yield GaugeMetricFamily(f"hearthgrid_hem_{name}", text, value=float(value))
