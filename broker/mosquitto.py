"""
The production broker: a Mosquitto configuration with the same rules as the embedded one.

Identity is the X.509 certificate's common name (`use_identity_as_username`), which is also the
client id (`use_username_as_clientid`: without it any valid client could take over another's
session). What depends only on that identity is a pattern ACL; what depends on a role is listed per
service, because Mosquitto knows users and not roles.

Written for Mosquitto 2.0, after mosquitto.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wire import topics
from wire.errors import ConfigError
from wire.keys import is_id
from wire.topics import Peer, build, may_publish, may_subscribe

PLACEHOLDER = "hg1" + "a" * 32
"""Stands for the client's own identity (`%u`) while the rules are asked."""


def render_config(
    certificates: str, acl_file: str, state_folder: str, port: int = 8883, host: str = ""
) -> str:
    """
    mosquitto.conf.

    Args:
        certificates: folder of ca.crt, server.crt, server.key and crl.pem (`csmdb tls server`)
        host: address to listen on; empty: all
    """
    return f"""\
# Hearthgrid: Mosquitto 2.0, TLS with client certificates issued by the CSM-DB. Revoked ones are
# kept out by crl.pem and the ACL file: `broker sync-revocations` writes both, SIGHUP reads them.
{f"listener {port} {host}".rstrip()}
cafile {certificates}/ca.crt
certfile {certificates}/server.crt
keyfile {certificates}/server.key
crlfile {certificates}/crl.pem
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {acl_file}

# 0.36 ms instead of 45 ms for a request and its answer
set_tcp_nodelay true
max_packet_size 131072
max_inflight_messages 256
# never 0; the default of 1,000 silently drops messages that were acknowledged
max_queued_messages 100000
persistent_client_expiration 3d

# `broker sync-revocations` sends its SIGHUP there
pid_file {state_folder}/mosquitto.pid

persistence true
persistence_location {state_folder}/
# Once a second. `autosave_on_changes true` would write all sessions with all their queues at every
# message: a millisecond each when all is well, and more the further a subscriber is behind, until
# nothing gets through. A crash may lose a second of queued messages: consensus repeats its own,
# bodies are fetched, outboxes resend until final.
autosave_interval 1
autosave_on_changes false

log_type error
log_type warning
connection_messages false
"""


def render_acl(
    market: str, services: Mapping[str, frozenset[str]], revoked: Iterable[str] = ()
) -> str:
    """
    The ACL file.

    Args:
        services: identity -> roles of those who have a role beyond that of a home
        revoked: identities that may do nothing any more: what Mosquitto reads in a CRL keeps out
            new connections, and a standing one it neither ends nor silences

    Raises:
        ConfigError: not an identity.
    """
    lines = [
        f"# Hearthgrid, market {market}: who may speak and hear. %u is the certificate's name."
    ]
    lines += ["", "# every certified client"]
    # a home is the least of the enrolled; pattern rules hold for every user
    lines += _rules(Peer(PLACEHOLDER, frozenset({"prosumer"})), market, "pattern")
    gone = sorted(set(revoked))
    for identity in (*gone, *services):
        if not is_id(identity):
            raise ConfigError(f"{identity!r} is not an identity (hg1…)")
    for identity, roles in services.items():
        if identity in gone:
            continue
        lines += ["", f"# {', '.join(sorted(roles))}", f"user {identity}"]
        lines += _rules(Peer(identity, roles), market, "topic")
    for identity in gone:
        # Mosquitto asks for denials first, wherever they stand
        lines += ["", "# revoked", f"user {identity}", "topic deny #"]
    return "\n".join(lines) + "\n"


def _rules(peer: Peer, market: str, word: str) -> list[str]:
    """Ask `wire.topics` about every kind of topic, so that the two brokers cannot differ."""
    rules = []
    for kind in topics.KINDS:
        for leaf in (peer.id, "+") if "<id>" in kind else ("",):
            topic = build(market, kind, leaf)
            # may_publish is asked about one topic, so "anybody's" is asked with a stranger's leaf
            asked = build(market, kind, "stranger") if leaf == "+" else topic
            write, read = may_publish(peer, asked, market), may_subscribe(peer, topic, market)
            if leaf == "+" and not (write or read):
                continue
            access = {(True, True): "readwrite", (True, False): "write", (False, True): "read"}
            if (write, read) in access:
                shown = topic.replace(PLACEHOLDER, "%u") if word == "pattern" else topic
                rules.append(f"{word} {access[write, read]} {shown}")
    return rules
