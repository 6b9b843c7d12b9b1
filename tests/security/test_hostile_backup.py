"""A backup that somebody else made: links in it lead nowhere."""

import io
import json
import tarfile

import pytest

from hem.backup import restore
from wire.errors import ConfigError
from wire.slots import SlotGrid

MANIFEST = json.dumps({"format": 1, "madeMs": 0, "files": {"ems.sqlite": "0"}}).encode()


def plain(name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    return entry, content


def link(name, target, kind):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, str(target)
    return entry, b""


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("place", ["manifest", "file"])
def test_a_link_in_a_backup_is_not_followed(tmp_path, kind, place):
    """Neither out of the archive nor within it, and no error but a named one."""
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    entries = {
        "manifest": [link("manifest.json", secret, kind)],
        "file": [plain("manifest.json", MANIFEST), link("ems.sqlite", secret, kind)],
    }[place]
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ConfigError, match=r"not a backup|no plain file"):
        restore(tmp_path / "bad.tar", tmp_path / "home", SlotGrid(), 0)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["hem.lock"]
    assert secret.read_text() == "not yours"
