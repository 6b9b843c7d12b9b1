"""CSAF documents: what they name; hostile ones are refused by name; the published ones are read."""

import copy
import json
import time
from pathlib import Path

import pytest

from csmdb.csaf import MAX_BRANCHES, MAX_BYTES, MAX_PRODUCTS, read_advisory
from csmdb.product_names import Alias, is_model, is_product, is_vendor
from sim.scenarios.vulnerable_meter import made_up
from wire.errors import MalformedError, OversizedError

PUBLISHED = Path(__file__).parents[3] / "shared/data/csaf_advisories"
NAMED = {
    "icsa-17-061-02": [("Schneider Electric", "Conext ComBox", "3.03 BN 829", "3.03 BN 830")],
    "icsa-18-240-03": [("Schneider Electric", "PM5560", "2.5.3", "2.5.4")],
    "icsa-19-281-01": [("SMA", "Sunny WebBox", "1.6", "1.61")],
    "icsa-22-088-04": [("Modbus Tools", "Modbus Slave", "7.4.2", "7.4.3")],
    "icsa-23-026-07": [("Landis+Gyr", "E850", "1.0", None), ("Landis & Gyr", "ZMQ200", "", None)],
    "icsa-23-171-01": [("Enphase", "Envoy", "D7.0.88", "D7.3.130")],
    "icsa-23-229-03": [
        ("Schneider Electric", "ION7400", "3.1", "4.0.0"),
        ("SCHNEIDER ELECTRIC", "PowerLogic ION 9000", "3.9.9", "4.0"),
        ("Schneider Electric", "PM8000", "1", "4.0.0"), ("Schneider", "ION8650", "9", None),
        ("Schneider Electric", "ION8800", "", None),
    ],
    "icsa-24-130-02": [("alpitronic", "Hypercharger EV charger", "1", None)],
}  # fmt: skip
"""Of each published advisory: plates that it names, a version it names, one it does not."""
ALIASES = [
    Alias("Schneider Electric", "Conext ComBox", "Schneider Electric Software, LLC",
          "Conext ComBox model 865-1058", same=True),
]  # fmt: skip


def document(**changes):
    """Our own document, changed at paths like `document.tracking.version`."""
    value = json.loads(made_up())
    for path, new in changes.items():
        *way, last = path.split("__")
        where = value
        for step in way:
            where = where[int(step) if step.isdigit() else step]
        if new is None:
            del where[last]
        else:
            where[last] = new
    return json.dumps(value).encode()


# --- published ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_published_advisory_names_what_it_names(name):
    file = PUBLISHED / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"{name} is not beside the project (../shared/data/csaf_advisories)")
    advisory = read_advisory(file.read_bytes())
    assert advisory.id == name.upper() and advisory.publisher == "CISA"
    products = [one for weakness in advisory.vulnerabilities for one in weakness.affected]
    assert all(one.versions.readable for one in products)
    for vendor, model, bad, good in NAMED[name]:
        (mine,) = {one for one in products if is_product(vendor, model, one, ALIASES)}
        assert mine.versions.holds(bad) is True
        assert good is None or mine.versions.holds(good) is False
        assert not any(is_product("Somebody else", model, one, ALIASES) for one in products)


def test_every_published_advisory_is_known_to_these_tests():
    if not PUBLISHED.is_dir():
        pytest.skip("the advisories are not beside the project (../shared/data/csaf_advisories)")
    assert {file.stem for file in PUBLISHED.glob("*.json")} == set(NAMED)


# --- products -------------------------------------------------------------------------------------


def test_our_own_document():
    (weakness,) = read_advisory(made_up()).vulnerabilities
    (bad,), (good,) = weakness.affected, weakness.fixed
    assert (bad.vendor, bad.models, bad.versions.holds("1.0.9")) == ("Made up", ("M1",), True)
    assert good.versions.holds("1.1") is True


def test_firmware_installed_on_a_device_is_the_devices():
    """Branches of a device and of a firmware, related: the maker and model of the one, the
    version of the other; model numbers are names too."""
    device = {
        "product_id": "D", "name": "Meter",
        "product_identification_helper": {"model_numbers": ["ZX-9"]},
    }  # fmt: skip
    firmware = {"product_id": "F", "name": "Firmware 2.1"}
    tree = {
        "branches": [
            {"category": "vendor", "name": "Acme", "branches": [
                {"category": "product_name", "name": "Meter", "product": device},
                {"category": "product_name", "name": "MeterOS", "branches": [
                    {"category": "product_version", "name": "2.1", "product": firmware}]},
            ]},
        ],
        "relationships": [
            {"category": "installed_on", "product_reference": "F",
             "relates_to_product_reference": "D",
             "full_product_name": {"product_id": "P1", "name": "Firmware 2.1 on Meter"}},
        ],
        "product_groups": [{"group_id": "G", "product_ids": ["P1", "D"]}],
    }  # fmt: skip
    remedy = {"category": "vendor_fix", "details": "x", "group_ids": ["G"]}
    status = [{"product_status": {"known_affected": ["P1"]}, "remediations": [remedy]}]
    read = read_advisory(document(product_tree=tree, vulnerabilities=status))
    (product,) = read.vulnerabilities[0].affected
    assert (product.vendor, product.models) == ("Acme", ("Meter", "ZX-9"))
    assert (product.versions.holds("2.1"), product.versions.holds("2.2")) == (True, False)
    assert is_product("ACME Inc.", "ZX 9", product, ())


def test_a_product_without_a_version_is_meant_in_every_version():
    tree = {"full_product_names": [{"product_id": "P1", "name": "Everything"}]}
    status = [{"product_status": {"known_affected": ["P1"]}}]
    read = read_advisory(document(product_tree=tree, vulnerabilities=status))
    assert read.vulnerabilities[0].affected[0].versions.holds("") is True


@pytest.mark.parametrize(
    ("plate", "named", "same"),
    [
        ("Schneider Electric", "Schneider Electric Software, LLC", True),
        ("SMA", "SMA Solar Technology AG", True), ("Enphase Energy Inc.", "Enphase ", True),
        ("Smart", "SMA Solar Technology AG", False), ("", "SMA", False), ("AG", "SMA AG", False),
        ("Electric", "Schneider Electric", False),
    ],
)  # fmt: skip
def test_makers(plate, named, same):
    assert is_vendor(plate, named) is is_vendor(named, plate) is same


@pytest.mark.parametrize(
    ("plate", "named", "same"),
    [
        ("PM5560", "PowerLogic PM5560", True), ("PowerLogic PM5560", "PM5560", True),
        ("ION 7400", "PowerLogic ION7400", True), ("E850", "E850 (ZMQ200)", True),
        ("webbox", "Sunny WebBox Firmware", False), ("SUNNY-WEBBOX", "Sunny WebBox Firmware", True),
        ("PM556", "PowerLogic PM5560", False), ("60", "PM 60", False), ("", "PM5560", False),
        ("firmware", "firmware", False),
    ],
)  # fmt: skip
def test_models(plate, named, same):
    assert is_model(plate, named) is same


def test_an_operators_word_counts_before_the_rules():
    (bad,) = read_advisory(made_up()).vulnerabilities[0].affected
    assert is_product("Made up", "M1", bad, ())
    assert not is_product("Made up", "M1", bad, [Alias("made-up", "m1", "Made up", "M1", False)])
    assert is_product("Lab", "X", bad, [Alias("LAB", "x", "made up", "m1", True)])


# --- hostile ones ---------------------------------------------------------------------------------


def branch(depth):
    leaf = {"category": "product_name", "name": "x", "product": {"product_id": "P", "name": "x"}}
    for _ in range(depth - 1):
        leaf = {"category": "legacy", "name": "x", "branches": [leaf]}
    return {"branches": [leaf]}


def circle():
    one = {
        "category": "installed_on", "product_reference": "B", "relates_to_product_reference": "B",
        "full_product_name": {"product_id": "A", "name": "a"},
    }  # fmt: skip
    other = copy.deepcopy(one)
    other |= {"product_reference": "A", "relates_to_product_reference": "A"}
    other["full_product_name"]["product_id"] = "B"
    return {"relationships": [one, other]}


NO_WEAKNESS = {"vulnerabilities": []}
HOSTILE = {
    "not JSON": b"CSAF",
    "not UTF-8": b'{"document": "\xff"}',
    "half a pair of surrogates": made_up().replace(b"No authentication", b"\\ud800"),
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a key twice": made_up().replace(b'"document":', b'"document": {}, "document":', 1),
    "not a number": made_up().replace(b'"No authentication"', b"NaN"),
    "digits": made_up().replace(b'"No authentication"', b"1" * 5_000),
    "a list": b"[]",
    "nothing": b"",
    "deep branches": document(product_tree=branch(MAX_BRANCHES + 1), **NO_WEAKNESS),
    "relations in a circle": document(product_tree=circle(), **NO_WEAKNESS),
    "an id twice": document(
        product_tree={"full_product_names": [{"product_id": "P1", "name": "x"}] * 2}
    ),
    "a group twice": document(
        product_tree={"product_groups": [{"group_id": "G", "product_ids": []}] * 2}, **NO_WEAKNESS
    ),
    "a group of groups": document(
        product_tree={"product_groups": [{"group_id": "G", "product_ids": ["G"]}]}, **NO_WEAKNESS
    ),
    "products that are not there": document(product_tree={}),
    "a remedy for nothing": document(vulnerabilities__0__remediations__0__product_ids=["P9"]),
    "vulnerable and fixed": document(
        vulnerabilities__0__product_status={"known_affected": ["P1"], "fixed": ["P1"]}
    ),
    "vulnerable and not": document(
        vulnerabilities__0__product_status={"known_affected": ["P1"], "known_not_affected": ["P1"]}
    ),
    "a wrong type": document(vulnerabilities__0__product_status=["P1"]),
    "a name that is a number": document(document__title=7),
    "a long range": document(
        product_tree__branches__0__branches__0__branches__0__name="vers:generic/<" + "1." * 500
    ),
    "CSAF 1": document(document__csaf_version="1.0"),
    "no advisory": document(document__category="csaf_informational_advisory"),
    "a draft": document(document__tracking__status="draft"),
    "no revision": document(document__tracking__version="latest"),
    "a huge revision": document(document__tracking__version="9" * 40),
    "no date": document(document__tracking__current_release_date="soon"),
    "a date without zone": document(document__tracking__current_release_date="2026-01-01T00:00:00"),
    "a title of two lines": document(document__title="a\x1bb"),
    "no publisher": document(document__publisher=None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_refused_by_name_and_soon(name):
    began_s = time.process_time()
    with pytest.raises(MalformedError):
        read_advisory(HOSTILE[name])
    assert time.process_time() - began_s < 5


def test_what_is_hostile_only_by_one_thing_is_read_without_it():
    """The documents above differ from these by what they are refused for."""
    read_advisory(document(product_tree=branch(MAX_BRANCHES), **NO_WEAKNESS))
    read_advisory(document(document__tracking__status="interim"))
    read_advisory(document(document__tracking__version="1.0.0"))


def test_too_large_a_document_is_refused():
    with pytest.raises(OversizedError):
        read_advisory(b" " * (MAX_BYTES + 1))
    rows = [{"product_id": f"P{number}", "name": "x"} for number in range(MAX_PRODUCTS + 1)]
    with pytest.raises(OversizedError):
        read_advisory(document(product_tree={"full_product_names": rows}))


def test_the_digest_is_of_the_content_not_of_its_spelling():
    spelled = json.dumps(json.loads(made_up()), indent=3, sort_keys=True).encode()
    assert read_advisory(spelled).digest == read_advisory(made_up()).digest
    assert read_advisory(document(document__title="x")).digest != read_advisory(made_up()).digest
