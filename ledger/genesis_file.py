"""
A genesis as people write it: a commented TOML file, made into `genesis.json` by `ledger init`.

Keys are those of `ledger.genesis` in snake_case. Two things are easier here: `start` is a date with
a time zone instead of `start_ms`, and identities may be left out, being hashes of the keys.
"""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ledger.genesis import MAX_GENESIS_BYTES, Genesis, genesis_from_json, sealed_json
from wire.errors import ConfigError, MalformedError
from wire.keys import KEY_BYTES, from_text, id_of

ADDRESS_SLOTS = 4
"""How long a home trades under one address where the file says nothing: a market that shall link
its homes' slots has to say so."""
EXAMPLE = Path(__file__).parent / "templates" / "genesis.toml"
_HELP = "see `ledger init --example`"


def example() -> str:
    """A commented file with every key; its public keys are to be filled in."""
    return EXAMPLE.read_text(encoding="utf-8")


def read_genesis_file(path: Path) -> Genesis:
    """
    Read a TOML file, complete its identities and its chain id, and check it.

    Raises:
        ConfigError: names file, key and remedy.
    """
    try:
        if path.stat().st_size > MAX_GENESIS_BYTES:
            raise ConfigError(f"{path}: longer than {MAX_GENESIS_BYTES} B; {_HELP}")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_HELP}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}; {_HELP}") from None
    try:
        return genesis_from_json(sealed_json(_camel(_complete(table))))
    except (ConfigError, MalformedError) as error:
        raise ConfigError(f"{path}: {_snake(str(error))}; {_HELP}") from None


def _complete(table: dict[str, Any]) -> dict[str, Any]:
    """Identities from keys, `start_ms` from `start`, addresses that change by default."""
    made = {name: value for name, value in table.items() if name != "start"}
    if "chain_id" in made:
        raise ConfigError("chain_id: remove it; it is made from everything else")
    made.setdefault("privacy", {"address_slots": ADDRESS_SLOTS})
    if "start" in table:
        made["start_ms"] = _start_ms(table["start"])
    if "start_ms" not in made:
        raise ConfigError("start: missing; give a date like 2026-07-01T00:00:00Z")
    public_key("issuing_key", made.get("issuing_key"))
    supervisor = _section("supervisor", made.get("supervisor"))
    made["supervisor"] = _named("supervisor", supervisor, "address")
    if "dso" in made:
        made["dso"] = _named("dso", _section("dso", made["dso"]), "address")
    validators = made.get("validators")
    if not isinstance(validators, list) or not validators:
        raise ConfigError("validators: missing; write a [[validators]] table for each")
    made["validators"] = [
        _named(f"validators[{number}]", _section(f"validators[{number}]", one), "id")
        for number, one in enumerate(validators, 1)
    ]
    return made


def public_key(name: str, text: Any) -> bytes:
    """
    A public key of the file.

    Raises:
        ConfigError: missing, or not one.
    """
    if text is None:
        raise ConfigError(f"{name}: missing; put the public key there, 43 characters of base64url")
    try:
        return from_text(text if isinstance(text, str) else "", KEY_BYTES)
    except MalformedError:
        raise ConfigError(
            f"{name}: {str(text)[:48]!r} is not a public key; it has 43 characters of base64url"
        ) from None


def _named(where: str, section: dict[str, Any], identity: str) -> dict[str, Any]:
    name = id_of(public_key(f"{where}.key", section.get("key")))
    if section.get(identity, name) != name:
        raise ConfigError(f"{where}.{identity}: does not belong to the key; leave it out")
    return {**section, identity: name}


def _section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: missing, or not a table")
    return value


def _start_ms(value: Any) -> int:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ConfigError("start: give a date with a time zone, like 2026-07-01T00:00:00Z")
    return round(value.astimezone(UTC).timestamp() * 1000)


def _camel(value: Any) -> Any:
    """The same with camelCase keys; a key that is camelCase already is not one of ours."""
    if isinstance(value, list):
        return [_camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for name, inner in value.items():
        if name != name.lower():
            raise ConfigError(f"{name}: unknown key; keys are written in snake_case")
        made[re.sub(r"_([a-z])", lambda found: found[1].upper(), name)] = _camel(inner)
    return made


def _snake(text: str) -> str:
    """A message with its camelCase names as they stand in the file."""
    words = re.sub(r"\b[a-z]+(?:[A-Z][a-z0-9]*)+\b", lambda found: _snake_word(found[0]), text)
    return words.replace("$.", "").replace(" - at `$`", "")


def _snake_word(word: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), word)
