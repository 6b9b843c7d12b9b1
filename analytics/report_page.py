"""
The report as one HTML file that opens anywhere: tables in the text, charts by plotly.js beside it.

The console's own chart code and colours are put into the page, so both look alike. Data travel in a
JSON block in which `<` is escaped, so nothing in it can end the block; everything else goes through
Jinja2's autoescape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly

from analytics.billing import PART_WORDS

HERE = Path(__file__).parent
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
SCRIPTS = ("format.js", "charts.js", "report.js")
STYLES = ("colours.css", "report.css")


def render_html(report: Mapping[str, Any], *, nonce: str = "") -> str:
    """
    The page of a report.

    Args:
        report: from `analytics.report.build_report`
        nonce: for the content security policy when the page is served
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        kwh=lambda wh: f"{wh / 1000:,.1f}",
        money=lambda uc: f"{uc / 1e6:,.2f}".replace("-", "−"),
        gain=_gain,
        cents=lambda uc: f"{uc / 10_000:.1f}",
        percent=lambda permille: "–" if permille is None else f"{permille / 10:.0f} %",
        clock=lambda ms: datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M"),
        date=lambda ms: datetime.fromtimestamp(ms / 1000, UTC).strftime("%A, %-d %B %Y"),
        short=lambda name: f"{name[:8]}…{name[-4:]}" if len(name) > 14 else name,
        reason=lambda name: name.lower().replace("_", " "),
    )
    return environment.get_template("report.html").render(
        r=report,
        nonce=nonce,
        part_words=PART_WORDS,
        totals=_totals(report["bills"]),
        styles="\n".join((HERE / "static" / name).read_text("utf-8") for name in STYLES),
        scripts="\n".join((HERE / "static" / name).read_text("utf-8") for name in SCRIPTS),
        data=json.dumps(report, ensure_ascii=True).replace("<", "\\u003c"),
        icon=(HERE / "static" / "icon.svg").read_text("utf-8"),
    )


def _gain(amount_uc: int) -> str:
    """An amount with its sign, two digits; 0.00 without one."""
    text = f"{amount_uc / 1e6:+,.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _totals(bills: list[dict[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {
        name: sum(row[name] for row in bills) for name in ("marketUc", "baselineUc", "savedUc")
    }
    sums["parts"] = {name: sum(row["parts"][name] for row in bills) for name in PART_WORDS}
    return sums
