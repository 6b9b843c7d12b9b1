"""What the aggregator makes of the CSM-DB's lists of revocations; the way is in test_desk."""

import pytest

from aggregator.revocations import fetch
from wire.errors import MalformedError


class Answers:
    """Stands for the line to a CSM-DB that says what it likes."""

    def __init__(self, *pages):
        self.pages, self.asked = list(pages), []

    async def ask(self, operation, parameters):
        self.asked.append(parameters["after"])
        return self.pages.pop(0)


async def test_pages_are_asked_for_until_there_are_no_more():
    csmdb = Answers(
        {"revocations": [{"number": 4}, {"number": 5}], "next": 5},
        {"revocations": [{"number": 9}], "next": 9},
        {"revocations": [], "next": 9},
    )
    operations, after = await fetch(csmdb, 3)
    assert [key for key, _ in operations] == ["revocation/4", "revocation/5", "revocation/9"]
    assert operations[0][1] == {"op": "revoke", "revocation": {"number": 4}}
    assert (after, csmdb.asked) == (9, [3, 5, 9])


@pytest.mark.parametrize(
    "page",
    [{}, {"revocations": 1, "next": 1}, {"revocations": [], "next": "x"},
     {"revocations": [[]], "next": 1}, {"revocations": [{"number": True}], "next": 1}],
)  # fmt: skip
async def test_what_is_no_list_of_revocations_is_malformed(page):
    with pytest.raises(MalformedError):
        await fetch(Answers(page, {"revocations": [], "next": 1}), 0)
