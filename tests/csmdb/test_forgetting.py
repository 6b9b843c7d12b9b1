"""An operator takes out a forged advisory: who was banned by it alone is let in, true ones come."""

import json

import pytest
from support.csmdb_site import enrolled
from typer.testing import CliRunner

from csmdb.advisories import find, import_document, review_all
from csmdb.advisory_watch import AdvisoryWatch
from csmdb.cli import app
from csmdb.knowledge_rows import KnowledgeRows
from runtime.metrics import refusals
from sim.scenarios.vulnerable_meter import made_up
from wire.errors import ConfigError, RolledBackError

ID = "MADE-UP-2026-01"


def forged():
    """Names every version of the meter, under a number that nothing true will reach."""
    raw = made_up().replace(b'"version": "1"', b'"version": "999999"')
    return raw.replace(b"vers:generic/<1.1", b"vers:all/*").replace(b', "fixed": ["P2"]', b"")


def ordered(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def banned(csmdb, home):
    return csmdb.repository.participant(home.ems.id).banned


def test_a_forged_revision_is_taken_out_and_a_lower_one_comes_in(csmdb):
    home = enrolled(csmdb, "fixed", vendor="Made up", model="M1", firmware="1.1")
    import_document(csmdb, forged())
    review_all(csmdb)
    assert ID in banned(csmdb, home)
    with pytest.raises(RolledBackError):
        import_document(csmdb, made_up())
    told = json.loads(ordered("advisory", "forget", csmdb.folder, ID, "--json").output)
    assert told["forgotten"]["version"] == "999999"
    assert [(one["banned"], one["changed"]) for one in told["meters"]] == [(False, True)]
    assert banned(csmdb, home) == ""
    assert import_document(csmdb, made_up()).outcome == "new"
    (row,) = [row for row in csmdb.repository.audit_rows() if row["action"] == "forget-advisory"]
    assert (row["actor"], row["detail"].split()[:2]) == ("operator", [ID, "999999"])
    csmdb.repository.check_audit()


def test_the_folder_does_not_bring_back_what_an_operator_took_out_and_the_operator_does(csmdb):
    feed = csmdb.folder / "feed"
    feed.mkdir()
    (feed / "forged.json").write_bytes(forged())
    AdvisoryWatch(csmdb, feed, 1).look()
    assert list(find(csmdb, ID))
    assert "forgotten" in ordered("advisory", "forget", csmdb.folder, ID).output
    before = refusals("csmdb").get("ROLLED_BACK", 0)
    AdvisoryWatch(csmdb, feed, 1).look()  # as after a start: it has seen nothing yet
    assert not list(find(csmdb, ID))
    assert refusals("csmdb").get("ROLLED_BACK", 0) == before + 1
    (feed / "true.json").write_bytes(made_up())
    AdvisoryWatch(csmdb, feed, 1).look()
    assert [one.version for one in find(csmdb, ID)] == ["1"], "another revision is taken"
    assert ordered("advisory", "import", csmdb.folder, feed / "forged.json").exit_code == 0
    assert [one.version for one in find(csmdb, ID)] == ["999999"]


def test_an_id_of_nobody_or_of_two_publishers_is_told_with_what_to_do(csmdb):
    assert "advisory list" in str(ordered("advisory", "forget", csmdb.folder, "X").exception)
    import_document(csmdb, made_up())
    other = made_up().replace(b"https://made-up.example", b"https://other.example")
    import_document(csmdb, other)
    error = ordered("advisory", "forget", csmdb.folder, ID).exception
    assert isinstance(error, ConfigError)
    (mine,) = [one for one in find(csmdb, ID) if "other" in one.name]
    assert repr(mine.name) in str(error)
    assert ordered("advisory", "forget", csmdb.folder, mine.name).exit_code == 0
    assert len(KnowledgeRows(csmdb.repository.db).advisories()) == 1
