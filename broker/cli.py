"""`broker run`: the embedded broker. `broker render mosquitto`: the production broker's files."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from broker.mosquitto import render_acl, render_config
from broker.service import Settings, load_trust, serve
from broker.sync import MosquittoSync
from runtime import log
from wire.certificates import ROLES
from wire.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The MQTT broker of a Hearthgrid market."
)
render_app = typer.Typer(no_args_is_help=True, help="Print configuration for other brokers.")
app.add_typer(render_app, name="render")


class Part(StrEnum):
    """Which file of the Mosquitto configuration to print."""

    config = "config"
    acl = "acl"


@app.command()
def run(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any.")] = 1883,
    market: Annotated[str | None, typer.Option(help="Name of the market.")] = None,
    genesis: Annotated[Path | None, typer.Option(help="Genesis file of the market.")] = None,
    issuing_key_file: Annotated[
        Path | None, typer.Option(help="Public issuing key of the CSM-DB, base64url.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="SQLite file of sessions; survives restarts.")
    ] = Path("broker.sqlite"),
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing on disk.")] = False,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the port here once listening.")
    ] = None,
    certfile: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="TLS private key, PEM.")] = None,
    quotas: Annotated[
        bool, typer.Option(help="Limit what each client may say (off: for benchmarks).")
    ] = True,
    ca: Annotated[
        Path | None, typer.Option(help="The CSM-DB's tls-ca.crt: clients must show certificates.")
    ] = None,
    revocations: Annotated[
        str | None, typer.Option(help="Signed list of revoked keys: file, or the door's https://…")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Say where as JSON.")] = False,
) -> None:
    """Run the embedded broker until SIGTERM or Ctrl-C. Nobody gets in without a token."""
    trust = load_trust(market, genesis, issuing_key_file)
    log.configure("broker", os.environ.get("HEARTHGRID_LOG", "warning"))
    if (certfile is None) != (keyfile is None):
        raise ConfigError("--certfile and --keyfile belong together")
    if ca is not None and certfile is None and not (revocations or "").startswith("https://"):
        raise ConfigError(
            "--ca: clients show certificates over TLS only; add --certfile, --keyfile"
        )
    kept = None if memory else state
    settings = Settings(
        trust, host, port, kept, port_file, json, certfile, keyfile, quotas, ca, revocations
    )
    uvloop.run(serve(settings))


@render_app.command()
def mosquitto(
    part: Annotated[Part, typer.Argument(help="The file to print.")] = Part.config,
    market: Annotated[str, typer.Option(help="Name of the market.")] = "demo",
    certificates: Annotated[
        str, typer.Option(help="Folder of ca.crt, server.crt, server.key, crl.pem.")
    ] = "/etc/hearthgrid/broker",
    acl_file: Annotated[
        str, typer.Option(help="Where the ACL file will be.")
    ] = "/etc/hearthgrid/broker/acl",
    state_folder: Annotated[
        str, typer.Option(help="Folder of Mosquitto's own state.")
    ] = "/var/lib/mosquitto",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8883,
    service: Annotated[
        list[str] | None, typer.Option(help="ID=ROLE,ROLE of a service (ACL; repeatable).")
    ] = None,
) -> None:
    """Print mosquitto.conf, or with `acl` its ACL file."""
    if part is Part.config:
        text = render_config(certificates, acl_file, state_folder, port)
    else:
        text = render_acl(market, dict(_service(entry) for entry in service or []))
    sys.stdout.write(text)


@app.command("sync-revocations")
def sync_revocations(
    source: Annotated[str, typer.Argument(help="The CSM-DB's door, https://HOST:PORT.")],
    ca: Annotated[Path, typer.Option(help="The CSM-DB's tls-ca.crt.")],
    certificates: Annotated[Path, typer.Option(help="Folder where crl.pem goes.")],
    acl_file: Annotated[Path, typer.Option(help="The ACL file to write.")],
    pid_file: Annotated[Path, typer.Option(help="Mosquitto's; it gets a SIGHUP.")],
    market: Annotated[str | None, typer.Option(help="Name of the market.")] = None,
    genesis: Annotated[Path | None, typer.Option(help="Genesis file of the market.")] = None,
    issuing_key_file: Annotated[
        Path | None, typer.Option(help="Public issuing key of the CSM-DB, base64url.")
    ] = None,
    service: Annotated[
        list[str] | None, typer.Option(help="ID=ROLE,ROLE of a service (ACL; repeatable).")
    ] = None,
    period_s: Annotated[float, typer.Option(min=0.1, max=60, help="Between looks [s].")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
) -> None:
    """Keep a Mosquitto's CRL and ACL as the CSM-DB's list of revoked keys says, until stopped."""
    trust = load_trust(market, genesis, issuing_key_file)
    log.configure("broker", os.environ.get("HEARTHGRID_LOG", "warning"))
    services = dict(_service(entry) for entry in service or [])
    sync = MosquittoSync(trust, source, ca, certificates / "crl.pem", acl_file, pid_file, services)
    if once:
        sync.look()
    else:
        asyncio.run(sync.run(period_s))


def _service(entry: str) -> tuple[str, frozenset[str]]:
    identity, _, roles = entry.partition("=")
    named = frozenset(roles.split(",")) if roles else frozenset()
    if not named or not named <= frozenset(ROLES):
        raise ConfigError(f"--service {entry}: want ID=ROLE,ROLE with roles of {', '.join(ROLES)}")
    return identity, named


def main() -> None:
    """Console script: a mistake of the operator is one line on standard error and exit code 2."""
    try:
        app()
    except ConfigError as error:
        sys.stderr.write(f"broker: {error}\n")
        sys.exit(2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main()
