"""Which proposed changes are approved without asking a person (ledger.approvals)."""

import pytest
from pydantic import BaseModel, ValidationError

from ledger.approvals import Approval, approves


def proposed(path, value, **more):
    return {
        "event": "change-proposed", "change": "0" * 32, "path": path, "value": value,
        "activationSlot": 5_000, "proposer": "hg1a", "voters": 3, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "path", "value", "expected"),
    [
        ({"path": "gateLeadS"}, "gateLeadS", 300, True),
        ({"path": "gateLeadS"}, "gateLeadS2", 300, False),
        ({"path": "prices.*"}, "prices.retailUcPerKwh", 1, True),
        ({"path": "prices.*"}, "escrow.feeUc", 1, False),
        ({"path": "Prices.*"}, "prices.retailUcPerKwh", 1, False),
        ({"path": "prices.*", "least": 10}, "prices.retailUcPerKwh", 10, True),
        ({"path": "prices.*", "least": 10}, "prices.retailUcPerKwh", 9, False),
        ({"path": "prices.*", "most": 20}, "prices.retailUcPerKwh", 20, True),
        ({"path": "prices.*", "most": 20}, "prices.retailUcPerKwh", 21, False),
        ({"path": "prices.*", "least": 0, "most": 0}, "prices.retailUcPerKwh", 0, True),
        ({"path": "*", "least": 0}, "template.escrow", True, False),
        ({"path": "*", "most": 9}, "feeder.congestion", "zones", False),
        ({"path": "template.*", "value": True}, "template.escrow", True, True),
        ({"path": "template.*", "value": True}, "template.escrow", False, False),
        ({"path": "template.*", "value": False}, "template.escrow", False, True),
        ({"path": "*", "value": True}, "code.version", 1, False),
        ({"path": "*", "value": False}, "escrow.feeUc", 0, False),
        ({"path": "feeder.congestion", "value": "zones"}, "feeder.congestion", "zones", True),
        ({"path": "feeder.congestion", "value": "zones"}, "feeder.congestion", "none", False),
    ],
)
def test_a_rule_covers_a_path_and_the_values_it_names(rule, path, value, expected):
    assert approves([Approval(**rule)], proposed(path, value)) is expected


def test_one_rule_that_covers_the_change_is_enough_and_none_approves_nothing():
    rules = [Approval(path="escrow.*"), Approval(path="prices.*", most=5)]
    assert approves(rules, proposed("prices.feedInUcPerKwh", 5))
    assert not approves(rules, proposed("prices.feedInUcPerKwh", 6))
    assert not approves([], proposed("prices.feedInUcPerKwh", 5))


def test_only_a_proposal_is_approved():
    event = proposed("prices.feedInUcPerKwh", 5, event="change-approved")
    assert not approves([Approval(path="*")], event)


@pytest.mark.parametrize(
    "rule",
    [
        {}, {"path": ""}, {"path": "*", "lest": 1}, {"path": "*", "least": 2, "most": 1},
        {"path": "*", "least": 1, "value": True}, {"path": "*", "most": 1, "value": "x"},
        {"path": "*", "value": 1}, {"path": "*", "least": True}, {"path": "*", "most": 1.0},
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_refused(rule):
    with pytest.raises(ValidationError):
        Approval(**rule)


def test_rules_live_in_a_configuration_and_do_not_change():
    class Config(BaseModel):
        approve: list[Approval] = []

    [rule] = Config.model_validate({"approve": [{"path": "gateLeadS", "least": 60}]}).approve
    assert rule == Approval(path="gateLeadS", least=60)
    with pytest.raises(ValidationError):
        rule.least = 1
