"""
The keys of a section of the provisioning file as a table, from the section's own model.

A key's meaning is the line under its field, its range and default are what is checked; so the page
cannot say anything else than the code.
"""

from __future__ import annotations

from typing import Any

from hem.config import Section

UNLISTED = {"kind", "name"}
"""Keys that every device has."""


def key_table(section: type[Section]) -> str:
    """
    Key, meaning, range and default of each of a section's keys, in Markdown; below it the tables of
    the entries that its lists hold.
    """
    schema = section.model_json_schema()
    parts = [_table(schema)]
    for title, nested in schema.get("$defs", {}).items():
        parts.append(f"A {title.lower()}: {_lead(nested)}\n\n{_table(nested)}")
    return "\n\n".join(parts)


def summary(section: type[Section]) -> str:
    """What a section is for: its docstring."""
    return " ".join((section.__doc__ or "").split())


def _lead(schema: dict[str, Any]) -> str:
    text = str(schema["description"])
    return text[0].lower() + text[1:]


def _table(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = ["| key | meaning | range | default |", "|---|---|---|---|"]
    for name, key in schema["properties"].items():
        if name in UNLISTED:
            continue
        default = "required" if name in required else _value(key.get("default"))
        rows.append(f"| `{name}` | {key['description']} | {_range(key)} | {default} |")
    return "\n".join(rows)


def _range(key: dict[str, Any]) -> str:
    for choice in key.get("anyOf", []):
        if choice["type"] != "null":
            return _range(choice)
    if "enum" in key:
        return ", ".join(map(str, key["enum"]))
    if "minimum" in key:
        return f"{key['minimum']:g} to {_plain(key['maximum'])}"
    match key["type"]:
        case "boolean":
            return "true, false"
        case "array":
            items = key["items"]
            return "a list, see below" if "$ref" in items else f"a list of {_range(items)}"
        case _:
            return {"path": "a path", "ipvanyaddress": "an IP address"}.get(
                key.get("format", ""), "text"
            )


def _value(default: Any) -> str:
    if default in (None, "", []):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return _plain(default) if isinstance(default, int | float) else str(default)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
