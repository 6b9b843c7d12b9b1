"""
What a home that hosts a validator hands to it: the attestation of its CPF.

The validator sends it under its own identity. From one of the home's addresses it would say whose
address that is. Home and validator meet in a folder of the validator's node, on one machine:

    <folder>/cpf/<end slot>.json      {"grant": …, "attestation": …}, the fields of operation `cpf`

A file is written under another name first and renamed, so that half a file is never read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wire.canonical import encode
from wire.certificates import ValidatorGrant, dump

INBOX = "cpf"


def hand_over(folder: Path, grant: ValidatorGrant, attestation: dict[str, Any]) -> Path:
    """
    Leave an attestation for the validator's node.

    Args:
        folder: of the node
        attestation: as the gateway signed it

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    inbox = folder / INBOX
    inbox.mkdir(exist_ok=True)
    target = inbox / f"{int(attestation['end_slot'])}.json"
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        file.write(encode({"grant": dump(grant), "attestation": attestation}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    return target
