"""
What was found on the network as a site file: `[[devices]]` entries to check, complete and paste.

Pure. What devices say of themselves stands in comments only, without control characters. A
parameter that has to be given is a comment marked `FILL IN`; what else would fit is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hem.gateway.detect import Finding
from hem.gateway.form import Entry, Field, missing_of, product, toml_of
from hem.gateway.links import Connection
from hem.gateway.match import Candidate
from hem.gateway.template import load_template

HEAD = """\
# Found by `hem detect`, which reads and never writes. Check what each device is, fill in what is
# marked, and paste the entries into the provisioning file; `hem device test` then reads them.
"""
RUNNERS_UP_MAX = 3
WORDS = {
    "named": "a register of it names the product",
    "likely": "its values fit nothing else as well",
    "ambiguous": "AMBIGUOUS: other templates fit about as well",
    "weak": "WEAK: little was read that other devices would not show",
}


def entry_of(finding: Finding, name: str) -> Entry | None:
    """The device as an entry without the parameters only the owner knows; None for an unknown."""
    if finding.kind == "sunspec" and finding.sunspec is not None and finding.sunspec.capabilities:
        use = list(finding.sunspec.capabilities)
        entry: Entry = {"name": name, "kind": "sunspec", "use": use}
        return entry | _place(finding.connection, finding.unit, "sunspec")
    if finding.kind == "template":
        template = finding.candidates[0].template
        entry = {"name": name, "kind": "template", "template": template}
        return entry | _place(finding.connection, finding.unit, template)
    return None


def named(findings: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """The findings with a name for each, `meter`, `pv-2`; an unknown one has none."""
    taken: dict[str, int] = {}
    found = []
    for finding in findings:
        if entry_of(finding, "x") is None:
            found.append(("", finding))
            continue
        base = _role(finding)
        taken[base] = taken.get(base, 0) + 1
        found.append((base if taken[base] == 1 else f"{base}-{taken[base]}", finding))
    return found


def proposal(findings: Sequence[Finding]) -> str:
    """The site file."""
    parts = [HEAD]
    for name, finding in named(findings):
        entry = entry_of(finding, name)
        if entry is None:
            lines = [f"{_where(finding)}: {finding.note or 'a SunSpec device of no use to us'}"]
            parts.append("".join(f"# {_clean(line)}\n" for line in lines + _said(finding)))
        else:
            parts.append(toml_of(entry, _above(finding), _below(finding, entry)))
    return "\n".join(parts)


def to_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings for programs, each with its proposed entry."""
    return [
        {
            "where": finding.connection.where,
            "unit": finding.unit,
            "alsoUnits": list(finding.also_units),
            "kind": finding.kind,
            "verdict": finding.verdict if finding.kind == "template" else None,
            "sunspec": _sunspec_json(finding),
            "candidates": [_candidate_json(each) for each in finding.candidates],
            "note": _clean(finding.note),
            "entry": entry_of(finding, name),
            "toFillIn": [each.name for each in _missing(finding, name)],
        }
        for name, finding in named(findings)
    ]


def _above(finding: Finding) -> list[str]:
    if finding.sunspec is not None:
        return _said(finding)
    first, *others = finding.candidates
    template = load_template(first.template)
    lines = [
        f"{template.vendor} {', '.join(template.products)}",
        f"{WORDS[finding.verdict or 'weak']}: {'; '.join(map(_clean, first.reasons))}",
    ]
    lines += [_other(each, first) for each in others[:RUNNERS_UP_MAX]]
    return lines + _units(finding)


def _said(finding: Finding) -> list[str]:
    facts = finding.sunspec
    if facts is None:
        return _units(finding)
    lines = [f"SunSpec: {facts.vendor} {facts.model}, serial {facts.serial or 'not told'}"]
    for each in finding.candidates:
        shows = set(load_template(each.template).capabilities) - set(facts.capabilities)
        if shows:
            lines.append(f"template {each.template!r} fits, too: {', '.join(sorted(shows))}")
    return lines + _units(finding)


def _below(finding: Finding, entry: Entry) -> list[str]:
    lines = []
    for each in _missing(finding, str(entry["name"])):
        unit = f" {each.unit}" if each.unit else ""
        span = f"{each.min:g} to {each.max:g}{unit}: " if each.min is not None else ""
        lines.append(f"{each.name} =      # FILL IN: {span}{each.help}")
    if finding.kind == "template":
        chosen = product(finding.candidates[0].template)
        if chosen.one_of:
            lines.append(f'use = ["{chosen.capabilities[1]}"]      # if it is not mounted as a'
                         f" {chosen.capabilities[0]} meter")  # fmt: skip
    return lines


def _missing(finding: Finding, name: str) -> list[Field]:
    entry = entry_of(finding, name)
    if entry is None or finding.kind != "template":
        return []
    return missing_of(finding.candidates[0].template, entry)


def _place(connection: Connection, unit: int, identity: str) -> Entry:
    """How it is reached, without what the product's form has as its default."""
    defaults = {each.name: each.default for each in product(identity).fields}
    defaults |= {"connection": "tcp", "host": ""}  # a device's, whatever the form begins with
    if connection.kind == "rtu":
        facts: Entry = {"path": connection.path, "baud": connection.baud,
                        "parity": connection.parity}  # fmt: skip
    else:
        facts = {"host": connection.host, "port": connection.port}
    facts = {"connection": connection.kind, **facts, "device_id": unit}
    if connection.kind == "rtu-over-tcp":
        defaults["port"] = None  # adapters know no usual port
    return {key: value for key, value in facts.items() if value != defaults[key]}


def _role(finding: Finding) -> str:
    if finding.sunspec is not None:
        capabilities: tuple[str, ...] = finding.sunspec.capabilities
    else:
        template = load_template(finding.candidates[0].template)
        capabilities = template.capabilities[:1] if template.one_of else template.capabilities
    if len(capabilities) > 1:
        return "hybrid"
    return {"grid": "meter"}.get(capabilities[0], re.sub(r"[^a-z]", "", capabilities[0]))


def _other(each: Candidate, first: Candidate) -> str:
    behind = first.weight_bits - each.weight_bits
    how = "as well" if behind == 0 else f"{behind:g} bits behind"
    return f'or: template = "{each.template}", {how}'


def _units(finding: Finding) -> list[str]:
    if not finding.also_units:
        return []
    return [f"the same device answers as unit {', '.join(map(str, finding.also_units))}"]


def _where(finding: Finding) -> str:
    return f"{finding.connection.where}, unit {finding.unit}"


def _sunspec_json(finding: Finding) -> dict[str, Any] | None:
    facts = finding.sunspec
    if facts is None:
        return None
    return {
        "vendor": facts.vendor, "model": facts.model, "serial": facts.serial,
        "firmware": facts.firmware, "capabilities": list(facts.capabilities),
        "models": list(facts.models),
    }  # fmt: skip


def _candidate_json(each: Candidate) -> dict[str, Any]:
    return {
        "template": each.template, "weightBits": each.weight_bits, "named": each.named,
        "reasons": [_clean(reason) for reason in each.reasons],
    }  # fmt: skip


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
