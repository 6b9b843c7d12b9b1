"""Every parser of what comes from network, device or file has a target; a new one needs one."""

import ast
from pathlib import Path

from fuzz import harness

ROOT = Path(__file__).parents[2]
PARSERS = {
    # what is read: (where, the targets that feed it)
    "canonical JSON": ("wire/canonical.py", {"canonical"}),
    "envelopes": ("wire/envelope.py", {"envelope"}),
    "transactions": ("wire/transactions.py", {"transaction"}),
    "TMI's bids": ("wire/tmi.py", {"transaction", "operation"}),
    "certificates, grants, licences, tokens": ("wire/certificates.py", {"certificate", "token"}),
    "readings, receipts, attestations": ("wire/metering.py", {"meter_record", "reading"}),
    "withdrawals": ("wire/withdrawal.py", {"private_request"}),
    "day-ahead schedules": ("wire/day_ahead.py", {"private_request"}),
    "grid limits": ("wire/grid_limit.py", {"private_request"}),
    "the CSM-DB's answers": ("wire/enrolment.py", {"enrolment_answer"}),
    "topics": ("wire/topics.py", {"text"}),
    "keys and text": ("wire/keys.py", {"text"}),
    "enrolment and grant requests": ("csmdb/requests.py", {"csmdb"}),
    "operations": ("ledger/contracts/operations.py", {"operation", "execution"}),
    "blocks, votes, certificates": ("ledger/types.py", {"types", "node"}),
    "sync questions and answers": ("ledger/fetch.py", {"node"}),
    "snapshots": ("ledger/snapshot.py", {"snapshot"}),
    "light-client proofs": ("ledger/proofs.py", {"proof"}),
    "checkpoints": ("ledger/checkpoint.py", {"checkpoint"}),
    "genesis": ("ledger/genesis.py", {"genesis"}),
    "the vote log": ("ledger/wal.py", {"log"}),
    "records of the vote log": ("ledger/protocol.py", {"log_record"}),
    "statements of validators": ("ledger/statements.py", {"statement", "client"}),
    "MQTT packets, to the broker": ("broker/packets.py", {"packets", "broker"}),
    "MQTT packets, to a client": ("runtime/link.py", {"link"}),
    "CONNECT's token": ("broker/access.py", {"token", "broker"}),
    "HTTP: the ledger's API": ("ledger/api.py", {"http"}),
    "HTTP: the CSM-DB's API": ("csmdb/api.py", {"http"}),
    "HTTP: the household's page and its cookies": ("hem/web/app.py", {"http"}),
    "Modbus answers": ("hem/gateway/links.py", {"modbus"}),
    "SunSpec models": ("hem/gateway/sunspec.py", {"sunspec"}),
    "P1 telegrams": ("hem/gateway/p1.py", {"p1"}),
    "MQTT meters' messages": ("hem/gateway/mqtt_meter.py", {"mqtt_meter"}),
    "the gateway's socket": ("hem/gateway/protocol.py", {"gateway_rpc"}),
    "policy files": ("hem/controller/policy.py", {"policy"}),
    "device templates": ("hem/gateway/template.py", {"template"}),
    "provisioning files": ("hem/config.py", {"provisioning"}),
    "the aggregator's configuration": ("aggregator/config.py", {"aggregator_config"}),
    "backups of homes": ("hem/backup.py", {"archive"}),
    "backups of a CSM-DB": ("csmdb/backup.py", {"archive"}),
    "security advisories": ("csmdb/csaf.py", {"advisory"}),
    "ranges of versions": ("csmdb/versions.py", {"version"}),
    "firmware's metadata and attestations": ("wire/firmware.py", {"firmware"}),
    "signing requests of TLS keys": ("csmdb/pki.py", {"signing_request"}),
    "lists of revoked keys": ("wire/revoked_keys.py", {"revoked_keys"}),
    "measured homes": ("sim/profiles.py", {"profiles"}),
}
ELSEWHERE = {
    # decoders without a target of their own, and what stands in for it
    "hem/gateway/zwave.py": "tests/hem/test_zwave.py: bad answers of a real WebSocket server",
    "hem/gateway/decode.py": "the registers of `sunspec` and `modbus`",
    "hem/gateway/client.py": "`gateway_rpc`",
    "ledger/contracts/grants.py": "`execution`",
    "analytics/config.py": "the operator's own file: tests/analytics/test_analytics_cli.py",
    "csmdb/config.py": "the operator's own file: tests/csmdb/test_csmdb_cli.py",
    "csmdb/setup.py": "the CSM-DB's own file",
    "ledger/consent.py": "the operator's own file: tests/ledger/test_approvals.py",
    "ledger/genesis_file.py": "the operator's own file: tests/ledger/test_genesis.py",
    "ledger/rulebook.py": "`execution` proposes changes",
    "ledger/contracts/parameters.py": "`execution` proposes changes",
    "hem/setup_page.py": "behind a one-time code: tests/hem/test_setup_page.py sends bad bodies",
    "broker/service.py": "the operator's own genesis file: tests/broker/test_cli.py",
    "runtime/clock.py": "the simulation's own file",
    "sim/tables.py": "`profiles`",
    "hem/ems/firmware.py": "the gateway's answers: `gateway_rpc`",
    "csmdb/door.py": "the CSM-DB's own file; what the door takes: `csmdb`",
}
"""Whoever puts a decoder here says why no stranger reaches it, or by what it is fuzzed."""
DECODERS = {"json.loads", "json.load", "tomllib.loads", "tomllib.load", "msgspec.msgpack.decode",
            "msgspec.json.decode", "msgspec.convert", "msgspec.json.Decoder",
            "msgspec.msgpack.Decoder", "tarfile.open", "struct.unpack"}  # fmt: skip
OWN_DATA = {
    # rows and lines that the same process wrote
    "aggregator/accounts.py", "aggregator/store.py", "analytics/billing.py", "analytics/store.py",
    "csmdb/repository.py", "hem/controller/accuracy.py", "hem/ems/limit_book.py",
    "hem/ems/pledges.py", "hem/ems/sealed_bids.py", "hem/ems/value_worker.py",
    "hem/gateway/leases.py", "hem/gateway/meterbook.py", "hem/gateway/watchdog.py",
    "hem/gateway/write_budget.py", "hem/controller/plan.py", "hem/dump.py", "hem/ems/light.py",
    "hem/firmware_client.py", "hem/firmware_worker.py", "hem/gateway/firmware.py",
    "hem/ems/firmware_status.py", "csmdb/firmware_repository.py",
    "hem/ems/planner.py", "hem/ems/solver.py", "hem/summary.py", "ledger/schedule.py",
}  # fmt: skip


def test_every_listed_parser_has_its_targets_and_every_target_a_parser():
    used = set()
    for name, (path, targets) in PARSERS.items():
        assert (ROOT / path).is_file(), (name, path)
        assert targets and targets <= harness.TARGETS.keys(), name
        used |= targets
    assert set(harness.TARGETS) - used <= {"event_chain"}, "a target that no row names"


def decoders_in(path):
    """Names of decoding functions that a module calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found & DECODERS


def test_whoever_decodes_is_listed():
    """A module that begins to decode something is fuzzed, or says here why it need not be."""
    listed = {path for path, _ in PARSERS.values()} | ELSEWHERE.keys() | OWN_DATA
    folders = ("wire", "runtime", "ledger", "hem", "broker", "csmdb", "aggregator", "analytics")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.startswith("cli") and decoders_in(path)
    }
    assert not found - listed
    stale = {path for path in (*ELSEWHERE, *OWN_DATA) if not (ROOT / path).is_file()}
    assert not stale
