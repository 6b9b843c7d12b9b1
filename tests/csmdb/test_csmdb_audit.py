"""The audit log: any change of what was written is found."""

import json
import sqlite3
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.csmdb_site import NOW_MS, StandingClock, drop_triggers, enrolled, run_csmdb

from csmdb.audit import AuditBrokenError, AuditRow, Personal, check, digest_of, follow, make_head
from csmdb.setup import create, open_csmdb
from wire.errors import ConfigError

KEY = bytes(range(32))


def a_log(count=8):
    """Rows, head and what is personal of a log in which one subject of two was erased."""
    rows, head, personal = [], None, {}
    for number in range(1, count + 1):
        subject = f"hg1-{number % 2}"
        beside = Personal(f"{number:064x}", json.dumps({"name": f"Ann {number}"}))
        row = follow(
            head, time_ms=NOW_MS + number, actor="operator", action="set-person", outcome="OK",
            detail="", subject=subject, commitment=beside.commitment,
        )  # fmt: skip
        rows.append(row)
        personal[number] = beside
        head = make_head(KEY, row.seq, row.digest)
    erased = follow(
        head, time_ms=NOW_MS, actor="operator", action="erase", outcome="OK", detail="",
        subject="hg1-0",
    )  # fmt: skip
    personal = {number: one for number, one in personal.items() if number % 2}
    rows.append(erased)
    last = follow(
        make_head(KEY, erased.seq, erased.digest), time_ms=NOW_MS, actor="token/1",
        action="ban", outcome="OK", detail="", subject="hg1-1",
    )  # fmt: skip
    return [*rows, last], make_head(KEY, last.seq, last.digest), personal


ROWS, HEAD, PERSONAL = a_log()
NUMBERS = st.integers(0, len(ROWS) - 1)


def broken(rows=ROWS, head=HEAD, personal=PERSONAL):
    with pytest.raises(AuditBrokenError):
        check(rows, head, personal, KEY)


def test_a_log_as_it_was_written_is_whole():
    assert check(ROWS, HEAD, PERSONAL, KEY) == len(ROWS)


@given(NUMBERS, st.sampled_from([field.name for field in fields(AuditRow)]), st.data())
def test_a_row_altered_in_any_field_is_found(at, name, data):
    value = getattr(ROWS[at], name)
    kind = st.integers(-(2**40), 2**40) if isinstance(value, int) else st.text(max_size=70)
    changed = replace(ROWS[at], **{name: data.draw(kind.filter(lambda other: other != value))})
    broken([*ROWS[:at], changed, *ROWS[at + 1 :]])
    if name != "digest":  # … also by somebody who makes its digest anew
        honest = replace(changed, digest=digest_of(asdict(changed)))
        broken([*ROWS[:at], honest, *ROWS[at + 1 :]])


@given(NUMBERS, NUMBERS)
def test_rows_taken_out_are_found(first, last):
    first, last = sorted((first, last))
    broken(ROWS[:first] + ROWS[last + 1 :])


@given(NUMBERS, NUMBERS)
def test_rows_that_changed_places_are_found(one, other):
    if one != other:
        rows = list(ROWS)
        rows[one], rows[other] = rows[other], rows[one]
        broken(rows)


@given(NUMBERS, st.sampled_from(ROWS))
def test_a_row_put_in_is_found(at, row):
    broken([*ROWS[:at], row, *ROWS[at:]])


@given(NUMBERS)
def test_a_chain_made_anew_without_the_key_is_found(at):
    """Who can write to the database but has not the issuing key cannot seal another end."""
    rows = ROWS[:at]
    for row in ROWS[at:]:
        what = asdict(row) | {"detail": "forged"}
        for name in ("seq", "previous", "digest"):
            del what[name]
        head = make_head(bytes(32), rows[-1].seq, rows[-1].digest) if rows else None
        rows.append(follow(head, **what))
    broken(rows)
    broken(rows, make_head(bytes(32), rows[-1].seq, rows[-1].digest))


@given(st.sampled_from(sorted(PERSONAL)), st.sampled_from(["take", "change", "salt"]))
def test_what_is_personal_goes_only_by_an_erasure_and_never_changes(seq, how):
    kept = dict(PERSONAL)
    if how == "take":
        del kept[seq]
    elif how == "change":
        kept[seq] = replace(kept[seq], document="{}")
    else:
        kept[seq] = replace(kept[seq], salt="00" * 32)
    broken(personal=kept)


def test_words_put_beside_a_row_that_had_none_are_found():
    broken(personal=PERSONAL | {len(ROWS): Personal("00" * 32, "{}")})


def forge(csmdb, statement):
    """Somebody with the database in his hands."""
    drop_triggers(csmdb.repository.db)
    csmdb.repository.db.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit WHERE seq = (SELECT MAX(seq) FROM audit)",
        "DELETE FROM audit WHERE seq = 2",
        "UPDATE audit SET subject = '' WHERE seq = 3",
        "UPDATE audit SET time_ms = time_ms + 1 WHERE seq = 1",
        "DELETE FROM audit_head",
        "DELETE FROM audit",
        "DELETE FROM audit_personal",
    ],
)
def test_a_forged_file_is_found_by_the_command(csmdb, statement):
    home = enrolled(csmdb)
    csmdb.ban(home.ems.id, "tampered with by Ann")
    assert json.loads(run_csmdb("audit", "verify", csmdb.folder, "--json"))["rows"] == 4
    forge(csmdb, statement)
    error = run_csmdb("audit", "verify", csmdb.folder, code=1)
    assert error.startswith("csmdb: ")
    assert error.count("\n") == 1


def test_a_log_put_back_to_an_earlier_day_is_found_by_what_was_printed_then(csmdb, tmp_path):
    head = csmdb.repository.check_audit()
    enrolled(csmdb)
    later = csmdb.repository.check_audit()
    assert csmdb.repository.check_audit(f"{head.seq}:{head.digest}") == later
    with pytest.raises(AuditBrokenError, match="not in the log"):
        csmdb.repository.check_audit(f"{later.seq + 1}:{later.digest}")


def test_a_change_that_fails_leaves_no_row_and_a_row_that_fails_no_change(csmdb, monkeypatch):
    """They are one transaction."""
    before = csmdb.repository.check_audit()
    with pytest.raises(ConfigError):
        csmdb.ban("hg1nobody", "why")
    assert csmdb.repository.check_audit() == before
    home = enrolled(csmdb)

    def fail(*_words, **_more):
        raise OSError("disk full")

    monkeypatch.setattr(csmdb.repository, "audit", fail)
    with pytest.raises(OSError, match="disk full"):
        csmdb.ban(home.ems.id, "why")
    assert csmdb.repository.participant(home.ems.id).banned == ""


def test_who_what_when_and_on_whom_can_be_read(csmdb):
    home = enrolled(csmdb)
    csmdb.ban(home.ems.id, "tampered with")
    rows = json.loads(run_csmdb("audit", "show", csmdb.folder, "--subject", home.ems.id, "--json"))
    assert [(row["actor"], row["action"], row["outcome"]) for row in rows] == [
        (home.ems.id, "enroll", "OK"), ("operator", "ban", "OK"),
    ]  # fmt: skip
    assert rows[1]["time_ms"] == NOW_MS
    assert rows[1]["personal"] == {"reason": "tampered with"}
    line = run_csmdb("audit", "show", csmdb.folder).splitlines()[-1]
    assert line.split()[2:] == ["operator", "ban", home.ems.id, "OK"]


def test_a_bans_reason_is_not_in_the_chain(csmdb):
    """It is what an operator wrote of somebody, and comes back with every refusal."""
    home = enrolled(csmdb)
    csmdb.ban(home.ems.id, "Ann Example broke the seal")
    csmdb.desk.renew(home.ems.id, NOW_MS)
    for row in csmdb.repository.audit_rows():
        assert "Ann" not in json.dumps({**row, "personal": ""})


def test_a_log_of_the_first_release_goes_on(tmp_path):
    """Its rows had no subject and its end no seal."""
    folder = tmp_path / "csmdb"
    create(folder, "test", clock=StandingClock()).close()
    with sqlite3.connect(folder / "csmdb.sqlite") as old:
        old.execute("DROP TRIGGER audit_no_update")
        row = {"seq": 1, "time_ms": 1, "actor": "operator", "action": "x", "outcome": "OK",
               "detail": "", "previous": "00" * 32}  # fmt: skip
        old.execute("DELETE FROM _sqlite_migrations WHERE name = 'audit_of_subjects'")
        old.execute("DROP INDEX idx_audit_subject")
        for name in ("subject", "commitment"):
            old.execute(f"ALTER TABLE audit DROP COLUMN {name}")
        old.execute("DROP TABLE audit_head")
        old.execute("DROP TABLE audit_personal")
        digest = digest_of(row)
        old.execute(
            "UPDATE audit SET time_ms = 1, action = 'x', detail = '', previous = ?, digest = ?",
            [row["previous"], digest],
        )
    old.close()
    with open_csmdb(folder, clock=StandingClock()) as csmdb:
        assert csmdb.repository.check_audit().seq == 1
        enrolled(csmdb)
        assert csmdb.repository.check_audit().seq == 3
