"""A CSM-DB on each storage; PostgreSQL where a server can be started."""

import pytest
from support.csmdb_site import StandingClock

from csmdb.setup import create


@pytest.fixture(scope="session")
def postgres():
    support = pytest.importorskip("support.postgres", reason="no psycopg: the extra `postgres`")
    running = support.running_postgres()
    try:
        server = running.__enter__()
    except support.NoServerError as error:
        pytest.skip(f"PostgreSQL: {error}")
    yield server
    running.__exit__(None, None, None)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def storage_url(request):
    """Of an empty database; empty for SQLite."""
    if request.param == "sqlite":
        return ""
    server = request.getfixturevalue("postgres")
    server.drop_databases()
    return server.fresh()


@pytest.fixture
def csmdb(tmp_path, storage_url):
    folder = tmp_path / "csmdb"
    with create(folder, "test", storage_url=storage_url, clock=StandingClock()) as opened:
        yield opened


@pytest.fixture
def files(tmp_path, storage_url, request):
    """A function: every file in which a CSM-DB could have left something."""

    def found():
        own = [path for path in (tmp_path / "csmdb").rglob("*") if path.is_file()]
        return own + (request.getfixturevalue("postgres").files() if storage_url else [])

    return found
