"""
The knowledge base: every advisory at its newest revision, and which meters it names.

A meter is vulnerable when an advisory names its product in a version that it runs, or that cannot
be told apart from it (`csmdb.versions`): whoever does not know, is on the safe side. It is not when
the same vulnerability names that version as fixed or not affected. What is only under
investigation bans nobody and is shown.

References:
    ETSE, security layer (knowledge base of advisories, refreshed on schedule and on demand).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from csmdb.csaf import Advisory, Product, Vulnerability, read_advisory
from csmdb.knowledge_rows import KnowledgeRows
from csmdb.product_names import Alias, is_product
from wire.certificates import Meter

Make = tuple[str, str, str]
"""Vendor, model and firmware of a meter."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An advisory names a meter."""

    advisory: str
    """Its id, as people know it."""
    digest: str
    revision: str
    cve: str
    product: str
    versions: str
    """The versions that the advisory names, as it writes them."""
    certain: bool
    """False: it cannot be told whether the meter's version is one of them."""
    bans: bool
    """False: under investigation."""
    fixed_in: tuple[str, ...]
    """Versions of the product that are named as fixed."""
    remedies: tuple[str, ...]
    """What the advisory tells to do."""


@dataclass(slots=True)
class Knowledge:
    """Advisories as they were read, kept between two looks at the database."""

    _advisories: dict[str, Advisory] = field(default_factory=dict)
    """By digest."""
    _aliases: tuple[Alias, ...] = ()
    _found: dict[Make, list[Finding]] = field(default_factory=dict)
    digest: str = ""
    """SHA-256 over the digests of all advisories, hex."""

    def refresh(self, rows: KnowledgeRows) -> None:
        """Take in what is new in the database, whoever wrote it."""
        digests, aliases = rows.digests(), tuple(rows.aliases())
        if self.digest and set(digests) == set(self._advisories) and aliases == self._aliases:
            return
        self._advisories = {
            one: self._advisories.get(one) or read_advisory(rows.document(one).encode())
            for one in digests
        }
        self._aliases, self._found = aliases, {}
        self.digest = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()

    def findings(self, meter: Meter) -> list[Finding]:
        """What the advisories say of a meter, in order of their ids."""
        make = (meter.vendor, meter.model, meter.firmware)
        found = self._found.get(make)
        if found is None:
            advisories = sorted(self._advisories.values(), key=lambda one: one.name)
            found = self._found[make] = [
                finding for one in advisories for finding in self._of(one, make)
            ]
        return found

    def _of(self, advisory: Advisory, make: Make) -> Iterable[Finding]:
        for weakness in advisory.vulnerabilities:
            for products, bans in (
                (weakness.affected, True),
                (weakness.under_investigation, False),
            ):
                product = self._first(products, weakness, make)
                if product is not None:
                    yield self._finding(advisory, weakness, product, make, bans)
                    break

    def _first(
        self, products: Iterable[Product], weakness: Vulnerability, make: Make
    ) -> Product | None:
        """The first product that is this meter, unless its version is named as clear of it."""
        vendor, model, firmware = make
        clear = (*weakness.fixed, *weakness.not_affected)
        if any(self._is(make, one) and one.versions.holds(firmware) for one in clear):
            return None
        named = (one for one in products if is_product(vendor, model, one, self._aliases))
        return next((one for one in named if one.versions.holds(firmware) is not False), None)

    def _is(self, make: Make, product: Product) -> bool:
        return is_product(make[0], make[1], product, self._aliases)

    def _finding(
        self, advisory: Advisory, weakness: Vulnerability, product: Product, make: Make, bans: bool
    ) -> Finding:
        return Finding(
            advisory=advisory.id,
            digest=advisory.digest,
            revision=advisory.version_text,
            cve=weakness.cve,
            product=f"{product.vendor} {product.models[0]}".strip(),
            versions=product.versions.text,
            certain=product.versions.holds(make[2]) is True,
            bans=bans,
            fixed_in=tuple(one.versions.text for one in weakness.fixed if self._is(make, one)),
            remedies=tuple(f"{one.category}: {one.details}" for one in weakness.remedies),
        )
