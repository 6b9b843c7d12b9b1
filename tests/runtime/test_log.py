"""Logging: what becomes of it must not matter to what logs."""

import io
import json
import os
import subprocess
import sys

import pytest
import structlog

from runtime.log import configure


@pytest.fixture(autouse=True)
def structlog_as_it_was():
    yield
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_its_component(capsys):
    configure("meter").info("read", power_w=7)
    line = json.loads(capsys.readouterr().err)
    assert (line["component"], line["event"], line["power_w"]) == ("meter", "read", 7)


def test_what_a_library_logs_is_a_json_line_too():
    """In a process of its own: pytest has handlers on the root logger."""
    code = (
        "import logging, runtime.log as log\n"
        "log.log_as_json()\n"
        "log.configure('meter')\n"
        "logging.getLogger('pymodbus').warning('no %s', 'answer')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "HEARTHGRID_LOG_FORMAT": "text"},
    )  # fmt: skip
    line = json.loads(done.stderr)
    assert (line["event"], line["level"], line["logger"]) == ("no answer", "warning", "pymodbus")


def test_a_reader_that_went_away_stops_nothing_but_the_log(monkeypatch):
    log = configure("meter")
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    log.warning("nobody hears this")


def test_the_level_hides_what_is_below_it(capsys):
    log = configure("meter", "warning")
    log.info("hidden")
    log.warning("shown")
    assert capsys.readouterr().err.count("\n") == 1
