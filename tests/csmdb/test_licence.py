"""Licences to validate."""

import pytest

from csmdb.setup import create
from wire.certificates import ValidatorLicence, dump, load
from wire.errors import ConfigError
from wire.keys import SigningKey


def test_a_licence_names_key_controller_and_end_and_is_the_issuers(tmp_path):
    key = SigningKey(bytes(32))
    with create(tmp_path / "csmdb", "demo") as csmdb:
        licence = csmdb.license_validator(key.public, "street-7", days=2)
        read = load(ValidatorLicence, dump(licence), csmdb.issuing_key.public, "demo")
        assert (read.validator, read.controller) == (key.id, "street-7")
        assert read.not_after_ms - read.not_before_ms == 2 * 86_400_000
        with pytest.raises(ConfigError, match="controller"):
            csmdb.license_validator(key.public, "", days=2)
