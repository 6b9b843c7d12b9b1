"""
docs/reference/devices.md, written from the templates and from the models of the other sections.

    python -m hem.gateway.template_docs docs/reference/devices.md

A test compares the file with what this writes now.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from hem.config import Proxy, Section
from hem.gateway.config_docs import key_table, summary
from hem.gateway.mqtt_meter import MqttConfig
from hem.gateway.p1 import P1Config
from hem.gateway.template import Connection, Hold, Parameter, Template, load_template, template_ids
from hem.gateway.zwave import ZwaveConfig

HEAD = """\
# Devices

Written from `hem/gateway/templates` and the models of the provisioning file by
`python -m hem.gateway.template_docs`; do not edit.

A device is a `[[devices]]` entry of the provisioning file:

    [[devices]]
    name = "battery"
    kind = "template"
    template = "sungrow-sh"
    host = "192.168.1.20"
    max_charge_w = 5000         # the template's parameters
    max_discharge_w = 5000
    use = ["pv", "battery"]     # of its capabilities; all of them if left out

| key | meaning | default |
|---|---|---|
| `kind` | `template`, `sunspec`, or `sunspec-meter`, `sunspec-inverter`, `sunspec-battery` | |
| `connection` | `tcp`, `rtu` (a serial line), `rtu-over-tcp` (one behind an adapter) | `tcp` |
| `host`, `port` | of `tcp` and `rtu-over-tcp` | the template's port |
| `path` | of `rtu`: the serial port, `/dev/serial/by-id/…` | |
| `baud`, `parity`, `stopbits` | of a serial line; `N`, `E` or `O` | the template's |
| `device_id` | the unit id | the template's |
| `use` | the capabilities wanted, of `grid`, `pv`, `battery`, `load` | all; of "or" the first |

Meters of kind [`p1`](#p1), [`mqtt`](#mqtt) and [`zwave`](#zwave) have keys of their own. What one
device is connected by [can be shared](#sharing-a-connection).

A template that is not known, or a parameter that is wrong, disables that device with the reason;
the site runs on.

**SunSpec devices need no template.** `kind = "sunspec"` finds the models by itself: 201–204 and
211–214 are the grid, 101–103, 111–113 and 701 PV, 802 or 713 a battery, which 124 or else 704 can
hold. With `use` it is known before the device is reached what it is; without, no reading is signed
until it was.

A battery of 124 is held only where its reversion timer (`InOutWRte_RvrtTms`, optional in the model)
keeps what is written to it.

A battery of 704 is held only where its reversion timer (`WSetRvrtTms`, `WSetEnaRvrt`) is there and
counts (`WSetRvrtRem`). Try it once before you rely on it: stop the gateway with `kill -9` while the
battery is held, and see it return; firmware is known whose timer counts and ends nothing. Its power
is that of the storage ports of 714; without 714 it is the AC power of 701, and PV behind the same
inverter would be taken for the battery's.

**Tested** says how much is known: `fixture` is a server with registers worked out from the
published map, `device` the product itself.

**Reversion** says who gives the battery back when we fall silent: a timer register of the device
that we write, the device itself after a silence, or, with none, only whoever watches us.
"""
TITLES = {
    "grid": "Meters",
    "pv": "PV inverters",
    "hybrid": "Hybrid inverters and systems",
    "battery": "Batteries",
}


OTHERS: dict[str, tuple[type[Section], str]] = {
    "p1": (
        P1Config,
        """\
[[devices]]
name = "meter"
kind = "p1"
path = "/dev/serial/by-id/usb-FTDI_P1-if00-port0"
""",
    ),
    "mqtt": (
        MqttConfig,
        """\
[[devices]]
name = "meter"
kind = "mqtt"
make = "shelly-em"
topic = "shellypro3em-0a1b2c"
""",
    ),
    "zwave": (
        ZwaveConfig,
        """\
[[devices]]
name = "heat-pump"
kind = "zwave"
node = 7
role = "load"
""",
    ),
}
"""Devices that are not on Modbus, each with an example."""
PROXY_EXAMPLE = """\
[[proxy]]
device = "battery"          # the name of a [[devices]] entry
listen = "0.0.0.0"          # the house's whole network; this machine only if left out
port = 5020
"""
PROXY = """
## Sharing a connection

{summary}

{example}
{table}

A guest speaks Modbus TCP, whatever the line is: `tcp`, `rtu` or `rtu-over-tcp`. A write is answered
with "busy" (6) while a lease of ours runs on that unit, and when the day's writes to a device that
keeps setpoints in flash are spent; a guest's writes count as ours do. A unit that is not shared is
answered with "no path" (10), a device that is silent with "no response" (11).

Only devices on Modbus can be shared; P1, MQTT and Z-Wave are refused when the file is read. A port
that is taken stops nothing: one line says so (`proxy not served yet`), it is tried again every 30
seconds, and `proxy ready` says when it was had.
"""


def device_reference() -> str:
    """The page."""
    templates = [load_template(identity) for identity in template_ids()]
    parts = [HEAD]
    for group, title in TITLES.items():
        members = [template for template in templates if _group(template) == group]
        parts.append(f"\n## {title}\n")
        parts += [_section(template) for template in members]
    parts.append("\n## Meters that are not on Modbus\n")
    parts += [_other(kind) for kind in OTHERS]
    example, table = _indented(PROXY_EXAMPLE), key_table(Proxy)
    parts.append(PROXY.format(summary=summary(Proxy), example=example, table=table))
    return "\n".join(parts)


def _other(kind: str) -> str:
    section, example = OTHERS[kind]
    return f"### {kind}\n\n{summary(section)}\n\n{_indented(example)}\n{key_table(section)}\n"


def _indented(example: str) -> str:
    return textwrap.indent(example, "    ")


def _group(template: Template) -> str:
    if template.one_of or len(template.capabilities) == 1:
        return template.capabilities[0]
    return "hybrid"


def _section(template: Template) -> str:
    rows = [
        f"### {template.id}\n",
        f"{template.vendor}: {', '.join(template.products)}.\n",
        f"- Capabilities: {_capabilities(template)}",
        f"- Connection: {'; '.join(map(_connection, template.connections))};"
        f" unit id {template.device_id}",
    ]
    if "battery" in template.capabilities:
        rows.append(f"- Control: {_control(template.hold)}")
    if template.firmware is not None:
        rows.append(f"- Firmware: taken by {template.firmware.by}")
    if template.notes:
        rows.append(f"- {template.notes}")
    rows += [f"- Source: {template.source}", f"- Tested: {template.tested}"]
    if template.parameters:
        rows += ["", "| parameter | meaning | range | default |", "|---|---|---|---|"]
        rows += [_parameter(each) for each in template.parameters]
    return "\n".join(rows) + "\n"


def _capabilities(template: Template) -> str:
    return (" or " if template.one_of else ", ").join(template.capabilities)


def _connection(connection: Connection) -> str:
    if connection.kind == "tcp":
        return f"TCP, port {connection.port}"
    return f"serial line, {connection.baud} baud, parity {connection.parity}"


def _control(hold: Hold | None) -> str:
    if hold is None:
        return "none, it is read only"
    ends = {
        "register": "reversion by a timer register",
        "keepalive": f"reversion by the device after {hold.keepalive_s} s of silence",
        "none": "no reversion of its own",
    }[hold.reversion]
    if hold.rewind_s is not None:
        ends += f" in time (its own period is begun anew every {hold.rewind_s} s)"
    what = "the battery's power" if hold.sets == "battery" else "the inverter's output"
    flash = [write.name for write in hold.write if write.flash]
    worn = f"; in flash, {hold.writes_per_day} writes a day: {', '.join(flash)}" if flash else ""
    return f"{what}, {ends}{worn}"


def _parameter(each: Parameter) -> str:
    unit = f" {each.unit}" if each.unit else ""
    if each.choices:
        allowed = ", ".join(map(str, each.choices))
    elif each.min is not None and each.max is not None:
        allowed = f"{each.min:g} to {each.max:g}{unit}" if each.max < 1e6 else f"from {each.min:g}"
    else:
        allowed = "true, false"
    default = "required" if each.default is None else f"{each.default}{unit}"
    return f"| `{each.name}` | {each.help} | {allowed} | {default} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(device_reference(), encoding="utf-8")
