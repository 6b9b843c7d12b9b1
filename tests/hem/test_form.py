"""The form of every product makes an entry that the home accepts, and refuses the rest by field."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from register_server import fixture

from hem.config import Device
from hem.gateway.devices import Site
from hem.gateway.form import FormError, checked, device_schema, product, products, toml_of
from hem.gateway.template import load_template, template_ids

PLACE = {
    "tcp": {"host": "192.168.1.20"},
    "rtu": {"path": "/dev/serial/by-id/usb-1"},
    "rtu-over-tcp": {"host": "adapter.lan"},
}


class Notes:
    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts.get("why")))

    warning = info


def filled_in(identity, connection):
    given_ = fixture(identity).get("parameters", {}) if identity != "sunspec" else {}
    as_typed = {name: str(value).lower() if value in (True, False) else str(value)
                for name, value in given_.items()}  # fmt: skip
    return {"name": "it", "connection": connection, **PLACE[connection], **as_typed}


@pytest.mark.parametrize("chosen", products(), ids=lambda one: one.id)
def test_what_is_filled_in_becomes_a_device_of_the_site(chosen):
    """Over every connection that the product has, with texts as a page sends them."""
    connections = next(each for each in chosen.fields if each.name == "connection").choices
    for connection in connections:
        entry = checked(chosen.id, filled_in(chosen.id, connection))
        (read,) = tomllib.loads(toml_of(entry))["devices"]
        assert read == entry
        site = Site([Device.model_validate(read)], 1.0, notes := Notes())
        assert [line for line in notes.lines if line[0] == "device disabled"] == []
        (link,) = site._links
        assert link.kind == connection
        shown = {each.name: each.default for each in chosen.fields}
        if connection != "rtu":
            assert link.port == shown["port"], "what the form shows is what is used"
        if connection != "tcp":
            assert (link.baud, link.parity) == (shown["baud"], shown["parity"])


def test_every_template_has_a_form_with_its_parameters():
    for identity in template_ids():
        fields = {each.name: each for each in product(identity).fields}
        for parameter in load_template(identity).parameters:
            field = fields[parameter.name]
            assert (field.unit, field.default, field.help) == (
                parameter.unit, parameter.default, parameter.help,
            )  # fmt: skip
            assert field.required == (parameter.default is None)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"name": "Big Meter"}, "name", "does not look like one"),
        ({"name": ""}, "name", "has to be given"),
        ({"host": ""}, "host", "has to be given"),
        ({"host": "a b"}, "host", "does not look like one"),
        ({"host": 'x"\ny = 1'}, "host", "does not look like one"),
        ({"port": "70000"}, "port", "lies between 1 and 65535"),
        ({"port": "5O2"}, "port", "is a whole number"),
        ({"port": True}, "port", "is a whole number"),
        ({"port": [1]}, "port", "is a whole number"),
        ({"max_charge_w": "1.5"}, "max_charge_w", "is a whole number"),
        ({"max_charge_w": "99999999"}, "max_charge_w", "lies between 100 and 30000 W"),
        ({"max_charge_w": "nan"}, "max_charge_w", "is a whole number"),
        ({"max_charge_w": 10**400}, "max_charge_w", "is a whole number"),
        ({"max_charge_w": ""}, "max_charge_w", "has to be given"),
        ({"connection": "pigeon"}, "connection", "is one of tcp, rtu"),
        ({"use": ["heat"]}, "use", "is of grid, pv, battery"),
        ({"colour": "blue"}, "colour", "is no field of this product"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(change, name, said):
    with pytest.raises(FormError) as caught:
        checked("sungrow-sh", filled_in("sungrow-sh", "tcp") | change)
    assert said in caught.value.wrong[name]


def test_a_meter_has_one_place():
    with pytest.raises(FormError) as caught:
        checked("eastron-sdm630", filled_in("eastron-sdm630", "rtu") | {"use": ["grid", "pv"]})
    assert caught.value.wrong == {"use": "is one place only"}


def test_an_unknown_product_is_refused():
    with pytest.raises(FormError) as caught:
        checked("perpetuum-mobile", {})
    assert "is not known" in caught.value.wrong["product"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([each.name for each in product("deye-sg-3p").fields] + ["x"]), JSON
    )
)
def test_any_answers_make_an_entry_or_a_refusal(answers):
    """Whatever a page, or somebody in its place, sends."""
    try:
        entry = checked("deye-sg-3p", answers)
    except FormError as error:
        assert error.wrong
    else:
        assert tomllib.loads(toml_of(entry))["devices"] == [entry]


@given(st.text())
def test_any_text_survives_in_a_file(text):
    text = text.replace("\x00", "")
    (read,) = tomllib.loads(toml_of({"name": text}, above=[text], below=[text]))["devices"]
    assert read == {"name": text}


def test_the_schema_has_a_variant_for_every_product_and_kind():
    schema = device_schema()
    json.dumps(schema)
    titles = {variant["title"] for variant in schema["oneOf"]}
    assert {"sunspec", "sunspec-meter", *template_ids()} <= titles
    kinds = json.dumps(schema)
    assert all(f'"{kind}"' in kinds for kind in ("p1", "mqtt", "zwave", "template"))
    (sungrow,) = [v for v in schema["oneOf"] if v["title"] == "sungrow-sh"]
    assert sungrow["required"] == ["name", "kind", "template", "max_charge_w", "max_discharge_w"]
    assert sungrow["properties"]["max_charge_w"]["maximum"] == 30_000
    assert sungrow["additionalProperties"] is False
