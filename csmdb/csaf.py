"""
Security advisories in CSAF 2.0: which products, in which versions, are vulnerable or not.

A document comes from outside and is believed in nothing but its form: it is bounded in size, depth
and products before it is read, wrong types, missing parts, references to nothing and circles are
refused by name, and so is a product that is said to be vulnerable and not vulnerable at once.
Fields we do not need are not looked at.

The product tree says what products are (branches: vendor, product name, version or range of
versions; `relationships`: firmware installed on a device), `vulnerabilities` what is wrong with
which. A range that cannot be read is kept as it is: nobody knows that a version is outside of it.

References:
    Common Security Advisory Framework 2.0 (OASIS): 3.2.2 product tree, 3.2.3 vulnerabilities,
    6.1.1 and 6.1.6 mandatory tests (references, contradicting status).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from csmdb.versions import Range, every_version, read_exact, read_range
from wire.errors import MalformedError, OversizedError

MAX_BYTES = 4 * 1024 * 1024
MAX_PRODUCTS = 20_000
MAX_BRANCHES = 30
"""Nested in each other, as CSAF 2.0 has it (3.2.2.1)."""
MAX_ROUNDS = 16
"""Relationships that build on each other."""
MAX_NAME = 1_000
MAX_ID = 200
MAX_VERSION_NUMBER = 2**31
CATEGORIES = ("csaf_base", "csaf_security_advisory", "csaf_vex")
FINISHED = ("final", "interim")
AFFECTED = ("known_affected", "first_affected", "last_affected")
FIXED = ("fixed", "first_fixed")
NOT_AFFECTED = ("known_not_affected",)
OPEN = ("under_investigation",)
_NAMES = ("vendor", "product_name", "product_family", "product_version", "product_version_range")


class _Helper(msgspec.Struct):
    model_numbers: list[str] = []


class _Product(msgspec.Struct):
    product_id: str
    name: str
    product_identification_helper: _Helper = msgspec.field(default_factory=_Helper)


class _Branch(msgspec.Struct):
    category: str
    name: str
    branches: list[_Branch] = []
    product: _Product | None = None


class _Relationship(msgspec.Struct):
    category: str
    full_product_name: _Product
    product_reference: str
    relates_to_product_reference: str


class _Group(msgspec.Struct):
    group_id: str
    product_ids: list[str]


class _Tree(msgspec.Struct):
    branches: list[_Branch] = []
    full_product_names: list[_Product] = []
    product_groups: list[_Group] = []
    relationships: list[_Relationship] = []


class _Publisher(msgspec.Struct):
    name: str
    namespace: str


class _Tracking(msgspec.Struct):
    id: str
    version: str
    status: str
    current_release_date: str
    initial_release_date: str


class _Document(msgspec.Struct):
    category: str
    csaf_version: str
    title: str
    publisher: _Publisher
    tracking: _Tracking


class _Remediation(msgspec.Struct):
    category: str
    details: str
    product_ids: list[str] = []
    group_ids: list[str] = []
    url: str = ""


class _Vulnerability(msgspec.Struct):
    cve: str = ""
    title: str = ""
    product_status: dict[str, list[str]] = {}
    remediations: list[_Remediation] = []


class _File(msgspec.Struct):
    document: _Document
    product_tree: _Tree = msgspec.field(default_factory=_Tree)
    vulnerabilities: list[_Vulnerability] = []


@dataclass(frozen=True, slots=True)
class Product:
    """Something that an advisory names."""

    vendor: str
    """Empty where the document does not say."""
    models: tuple[str, ...]
    """Its name, and the model numbers that identify it."""
    versions: Range


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do."""

    category: str
    """`vendor_fix`, `mitigation`, `workaround`, `no_fix_planned`, `none_available`."""
    details: str
    url: str


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One weakness and whom it concerns."""

    cve: str
    """Or its title, where it has no number."""
    affected: tuple[Product, ...]
    fixed: tuple[Product, ...]
    not_affected: tuple[Product, ...]
    under_investigation: tuple[Product, ...]
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True, slots=True)
class Advisory:
    """A document that was read."""

    namespace: str
    """Of the publisher; with `id` the name of the advisory."""
    id: str
    publisher: str
    title: str
    version: tuple[int, ...]
    """Of the revision: one number, or three."""
    released_ms: int
    """Of the present revision, UTC."""
    status: str
    vulnerabilities: tuple[Vulnerability, ...]
    digest: str
    """SHA-256 of the document without white space between its parts, hex."""
    text: str
    """The document that way."""

    @property
    def name(self) -> str:
        """What it is kept under."""
        return f"{self.namespace} {self.id}"

    @property
    def version_text(self) -> str:
        """The revision as people write it."""
        return ".".join(map(str, self.version))


def read_advisory(raw: bytes) -> Advisory:
    """
    Read a CSAF document.

    Raises:
        OversizedError: more bytes or products than we read.
        MalformedError: not JSON, too deep, not CSAF 2.0, a draft, or it contradicts itself.
    """
    if len(raw) > MAX_BYTES:
        raise OversizedError("an advisory is too long", bytes=len(raw))
    try:
        value = json.loads(raw, object_pairs_hook=_object, parse_constant=_no_constant)
        file = msgspec.convert(value, _File, strict=True)
        text = json.dumps(
            value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
    except UnicodeError:
        raise MalformedError("an advisory is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not a CSAF document: {str(error)[:200]}") from None
    document, tracking = file.document, file.document.tracking
    _check_document(document)
    products = _Products(file.product_tree)
    return Advisory(
        namespace=_one_line(document.publisher.namespace, "publisher.namespace", MAX_ID),
        id=_one_line(tracking.id, "tracking.id", MAX_ID),
        publisher=_one_line(document.publisher.name, "publisher.name"),
        title=_one_line(document.title, "title"),
        version=_revision(tracking.version),
        released_ms=_time_ms(tracking.current_release_date),
        status=tracking.status,
        vulnerabilities=tuple(_vulnerability(one, products) for one in file.vulnerabilities),
        digest=digest,
        text=text,
    )


# --- the product tree -------------------------------------------------------------------------


class _Products:
    """The products of a tree by their ids."""

    def __init__(self, tree: _Tree) -> None:
        self._known: dict[str, Product] = {}
        for branch in tree.branches:
            self._walk(branch, {})
        for one in tree.full_product_names:
            self._add(one, {})
        self._groups = {group.group_id: group.product_ids for group in tree.product_groups}
        if len(self._groups) != len(tree.product_groups):
            raise MalformedError("two product groups have one id")
        self._relate(tree.relationships)
        for group in tree.product_groups:
            self.of(group.product_ids)

    def of(self, ids: list[str]) -> tuple[Product, ...]:
        """The products of some ids."""
        for one in ids:
            if one not in self._known:
                raise MalformedError("a product is named that the tree lacks", product=one[:MAX_ID])
        return tuple(self._known[one] for one in ids)

    def members(self, group: str) -> list[str]:
        """Ids of a group's products."""
        if group not in self._groups:
            raise MalformedError("a group is named that the tree lacks", group=group[:MAX_ID])
        return self._groups[group]

    def _walk(self, branch: _Branch, above: dict[str, str], depth: int = 1) -> None:
        if depth > MAX_BRANCHES:
            raise MalformedError("branches are nested too deep", limit=MAX_BRANCHES)
        here = dict(above)
        if branch.category in _NAMES:
            here[branch.category] = _one_line(branch.name, branch.category)
        if branch.product is not None:
            self._add(branch.product, here)
        for below in branch.branches:
            self._walk(below, here, depth + 1)

    def _add(self, product: _Product, names: dict[str, str]) -> None:
        named = names.get("product_name") or names.get("product_family")
        models = [named or _one_line(product.name, "name")]
        numbers = product.product_identification_helper.model_numbers
        models += [_one_line(number, "model_numbers") for number in numbers]
        if "product_version_range" in names:
            versions = read_range(names["product_version_range"])
        elif "product_version" in names:
            versions = read_exact(names["product_version"])
        else:
            versions = every_version()
        self._keep(product.product_id, Product(names.get("vendor", ""), tuple(models), versions))

    def _keep(self, product_id: str, product: Product) -> None:
        if product_id in self._known:
            raise MalformedError("two products have one id", product=product_id[:MAX_ID])
        if len(self._known) >= MAX_PRODUCTS:
            raise OversizedError("an advisory names too many products", limit=MAX_PRODUCTS)
        self._known[product_id] = product

    def _relate(self, relationships: list[_Relationship]) -> None:
        """
        Products made of two others: a version of the one, on the device that the other is.

        A relationship may build on those before it; on itself, or in a circle, on nothing.
        """
        left = relationships
        for _ in range(MAX_ROUNDS):
            left = [one for one in left if not self._made(one)]
        if left:
            raise MalformedError("relationships go in a circle, or lead to nothing")

    def _made(self, one: _Relationship) -> bool:
        part = self._known.get(one.product_reference)
        device = self._known.get(one.relates_to_product_reference)
        if part is None or device is None:
            return False
        made = Product(device.vendor, device.models, part.versions)
        self._keep(one.full_product_name.product_id, made)
        return True


# --- vulnerabilities --------------------------------------------------------------------------


def _vulnerability(one: _Vulnerability, products: _Products) -> Vulnerability:
    status = one.product_status
    affected = _ids(status, AFFECTED)
    fixed, clear, doubtful = (_ids(status, kind) for kind in (FIXED, NOT_AFFECTED, OPEN))
    for left, right in ((affected, fixed), (affected, clear), (fixed, clear)):
        both = set(left) & set(right)
        if both:
            raise MalformedError("contradicting status of a product", product=min(both)[:MAX_ID])
    for remedy in one.remediations:
        products.of(remedy.product_ids)
        for group in remedy.group_ids:
            products.members(group)
    return Vulnerability(
        cve=_one_line(one.cve or one.title, "cve"),
        affected=products.of(affected),
        fixed=products.of(fixed),
        not_affected=products.of(clear),
        under_investigation=products.of(doubtful),
        remedies=tuple(
            Remedy(_one_line(each.category, "category"), each.details[:MAX_NAME],
                   each.url[:MAX_NAME])
            for each in one.remediations
        ),
    )  # fmt: skip


def _ids(status: dict[str, list[str]], kinds: tuple[str, ...]) -> list[str]:
    found = [one for kind in kinds for one in status.get(kind, ())]
    return list(dict.fromkeys(found))


# --- the document -----------------------------------------------------------------------------


def _check_document(document: _Document) -> None:
    if document.csaf_version != "2.0":
        raise MalformedError("not CSAF 2.0", csaf_version=document.csaf_version[:MAX_ID])
    if document.category not in CATEGORIES:
        raise MalformedError("not an advisory", category=document.category[:MAX_ID])
    if document.tracking.status not in FINISHED:
        raise MalformedError("not published", status=document.tracking.status[:MAX_ID])


def _revision(text: str) -> tuple[int, ...]:
    """A revision's number: one integer, or three (CSAF 3.1.11); build and pre-release are none."""
    found = re.fullmatch(r"(0|[1-9][0-9]*)(?:\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*))?", text[:64])
    numbers = tuple(int(part) for part in found.groups() if part is not None) if found else ()
    if not numbers or max(numbers) >= MAX_VERSION_NUMBER:
        raise MalformedError("not a revision's number", version=text[:MAX_ID])
    return numbers


def _time_ms(text: str) -> int:
    try:
        time = datetime.fromisoformat(text[:64])
        if time.tzinfo is None:
            raise ValueError
        return int(time.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise MalformedError("not a time with its zone", time=text[:64]) from None


def _one_line(text: str, field: str, limit: int = MAX_NAME) -> str:
    plain = " ".join(text.split())
    if len(plain) > limit or not plain.isprintable():
        raise MalformedError("expected one line", field=field, limit=limit)
    return plain


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
