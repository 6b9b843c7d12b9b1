"""The `hem` command: run a home, look at it, ask it why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hem.cli_devices import detect, device_app, setup
from hem.cli_firmware import firmware_app
from hem.private import private_files
from wire.errors import ConfigError

if TYPE_CHECKING:
    from hem.config import Provisioning
    from hem.controller.policy import Policy
    from wire.slots import SlotGrid

app = typer.Typer(
    help="The Home Energy Manager of one home.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
policy_app = typer.Typer(help="The owner's wishes.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
app.add_typer(device_app, name="device")
app.add_typer(firmware_app, name="firmware")
app.command()(detect)
app.command()(setup)

WithGateway = Annotated[
    bool, typer.Option(help="Start the gateway too (systemd starts it by itself).")
]
Provisioned = Annotated[Path, typer.Argument(help="Provisioning file of the home (TOML).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLog = Annotated[
    bool,
    typer.Option(
        "--json", help="Log JSON lines to standard error, whatever HEARTHGRID_LOG_FORMAT says."
    ),
]


@app.command()
def run(
    provisioning: Provisioned,
    gateway: WithGateway = True,
    as_json: JsonLog = False,
) -> None:
    """Enrol, then trade until stopped."""
    from runtime.log import log_as_json  # noqa: PLC0415  (before structlog is imported)

    if as_json:
        log_as_json()
    from hem.process import run_home  # noqa: PLC0415  (help should not wait for imports)

    run_home(provisioning, with_gateway=gateway)


@app.command()
def gateway(provisioning: Provisioned, as_json: JsonLog = False) -> None:
    """Run the gateway alone: devices and the meter key, in a process of their own."""
    from runtime.log import log_as_json  # noqa: PLC0415  (before structlog is imported)

    if as_json:
        log_as_json()
    from hem.gateway.service import main as gateway_main  # noqa: PLC0415

    gateway_main(provisioning)


@app.command()
def enroll(
    provisioning: Provisioned,
    gateway: WithGateway = True,
    as_json: Json = False,
) -> None:
    """Get certificate and grants with the claim code, without trading yet."""
    from hem.process import enrol_home  # noqa: PLC0415

    _print(enrol_home(provisioning, with_gateway=gateway), as_json)


@app.command("rotate-keys")
def rotate_keys(
    provisioning: Provisioned,
    gateway: WithGateway = True,
    as_json: Json = False,
) -> None:
    """Replace EMS and box key of a home that does not run; the old EMS key is revoked."""
    from hem.process import rotate_home  # noqa: PLC0415

    _print(rotate_home(provisioning, with_gateway=gateway), as_json)


@app.command()
def status(provisioning: Provisioned, as_json: Json = False) -> None:
    """Show what the home has on disk: wallet, positions, promises, withdrawals, outbox."""
    from hem.summary import status_of, status_text  # noqa: PLC0415

    config, grid, now_ms = _at(provisioning)
    facts = status_of(config.home.data_dir, grid, now_ms)
    print(json.dumps(facts) if as_json else "\n".join(status_text(facts)))


@app.command()
def wallet(provisioning: Provisioned, as_json: Json = False) -> None:
    """Show the balance, what of it is proved, and the last settled slots."""
    from hem.summary import proof_text, settlements_of  # noqa: PLC0415

    facts = _summary(provisioning)
    rows = settlements_of(_data_dir(provisioning))
    if as_json:
        print(json.dumps({**facts, "settlements": rows}))
        return
    print(f"balance {facts['balanceUc'] / 1e6:.6f} ¤, locked {facts['lockedUc'] / 1e6:.6f} ¤")
    print(proof_text(facts["light"]))
    for row in rows[-12:]:
        print(
            f"slot {row['slot']}: net {row['netWh']} Wh, bought {row['boughtWh']},"
            f" sold {row['soldWh']}, residual {row['residualWh']}"
            + (" (assumed: no receipt yet)" if row.get("assumed") else "")
        )


@app.command()
def why(
    provisioning: Provisioned,
    slot: Annotated[
        str, typer.Argument(help="Slot number, or HH:MM by the home's clock; empty: the last ones.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Explain decisions in words: what was done, why, and what became of it."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    from hem.config import load_market_facts, load_provisioning  # noqa: PLC0415
    from hem.summary import decisions_of  # noqa: PLC0415

    config = load_provisioning(provisioning)
    grid = load_market_facts(config.market.genesis).grid
    rows = decisions_of(config.home.data_dir, slot, grid, ZoneInfo(config.home.timezone))
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(row["text"])
    if not rows:
        print("no decision is kept for that")


@policy_app.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(help="Policy file (TOML).")],
    home: Annotated[
        Path | None,
        typer.Option(help="Provisioning file: say what stays in force where the file is broken."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a policy file before the home uses it; exit 2 and the line of what is wrong."""
    from hem.controller.policy import load_policy  # noqa: PLC0415

    if not file.exists():
        raise ConfigError(f"{file}: no such file; give a policy file")
    try:
        policy = load_policy(file)
    except ConfigError as error:
        if home is not None:
            from hem.ems.policy_file import last_good  # noqa: PLC0415

            good = last_good(file, _data_dir(home))
            if good is not None:
                _print({**_keys(good), "error": str(error)}, as_json)
        raise
    _print(_keys(policy), as_json)


@policy_app.command("show")
def policy_show(provisioning: Provisioned, as_json: Json = False) -> None:
    """Show the policy that a home goes by, and what is wrong with its file."""
    from hem.config import load_provisioning  # noqa: PLC0415
    from hem.ems.policy_file import in_force  # noqa: PLC0415

    config = load_provisioning(provisioning)
    policy, error = in_force(config.policy.file, config.home.data_dir)
    _print({**_keys(policy), "error": error}, as_json)


@app.command()
def plan(provisioning: Provisioned, as_json: Json = False) -> None:
    """Show what the home expects of the next day, and when to start what may wait."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    from hem.plan_text import plan_facts, plan_of, plan_text  # noqa: PLC0415

    config, grid, now_ms = _at(provisioning)
    slot = grid.slot_at(now_ms)
    found, starts = plan_of(config.home.data_dir, slot)
    if as_json:
        print(json.dumps(plan_facts(found, starts)))
        return
    for line in plan_text(found, starts, slot, grid, ZoneInfo(config.home.timezone)):
        print(line)


@app.command()
def limit(
    provisioning: Provisioned,
    import_w: Annotated[
        int | None, typer.Option(help="Take no more than this from the grid [W]; at least 4200.")
    ] = None,
    export_w: Annotated[
        int | None, typer.Option(help="Give no more than this to the grid [W].")
    ] = None,
    lasts: Annotated[str, typer.Option("--for", help="How long: 60min, 2h.")] = "60min",
    lift: Annotated[bool, typer.Option(help="Lift what was set here before.")] = False,
    as_json: Json = False,
) -> None:
    """Limit the home's power at the grid for a while; without options: show what was set."""
    from hem.controller.limits import Limit  # noqa: PLC0415
    from hem.controller.quantities import parse_duration_s  # noqa: PLC0415
    from hem.ems.limit_book import lift_limits, read_limits, set_limits  # noqa: PLC0415

    config, _, now_ms = _at(provisioning)
    folder = config.home.data_dir
    try:
        until_ms = now_ms + parse_duration_s(lasts) * 1000
    except ValueError as error:
        raise ConfigError(f"--for: {error}") from None
    if lift:
        lift_limits(folder)
    new = []
    if import_w is not None:
        new.append(Limit("import", import_w, "household", now_ms, until_ms))
    if export_w is not None:
        new.append(Limit("export", export_w, "household", now_ms, until_ms))
    held = set_limits(folder, tuple(new), now_ms) if new else read_limits(folder)
    rows: list[dict[str, Any]] = [
        {"side": one.side, "powerW": one.power_w, "untilMs": one.until_ms}
        for one in held
        if one.until_ms > now_ms
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        minutes = (row["untilMs"] - now_ms) // 60_000
        print(f"{row['side']}: at most {row['powerW']} W for {minutes} min more")
    if not rows:
        print("no limit is set here")


@app.command("page-code")
def page_code(
    provisioning: Provisioned,
    reset: Annotated[
        bool, typer.Option("--reset", help="Forget the password; the code sets a new one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the one-time code with which the page's password is set."""
    from hem.web.code import code_of  # noqa: PLC0415

    _print({"code": code_of(_data_dir(provisioning), reset=reset)}, as_json)


@app.command()
def backup(
    provisioning: Provisioned,
    target: Annotated[Path, typer.Argument(help="File to write (tar); must not exist.")],
    as_json: Json = False,
) -> None:
    """Write keys and databases into one file, also while the home runs. Keep it safe."""
    from hem.backup import back_up  # noqa: PLC0415

    config, _, now_ms = _at(provisioning)
    files = back_up(config.home.data_dir, target, config.home.name, now_ms)
    print(
        f"hem: {target} holds this home's keys: who has it is this home; keep it where nobody"
        " else gets it",
        file=sys.stderr,
    )
    _print({"file": str(target), "files": files}, as_json)


@app.command()
def restore(
    provisioning: Provisioned,
    source: Annotated[Path, typer.Argument(help="File of `hem backup`.")],
    as_json: Json = False,
) -> None:
    """Bring a home back into an empty data folder; it goes on from today."""
    from hem.backup import restore as bring_back  # noqa: PLC0415

    config, grid, now_ms = _at(provisioning)
    done = bring_back(source, config.home.data_dir, grid, now_ms)
    _print(
        {"files": done.files, "madeMs": done.made_ms, "operationsNotSentAgain": done.dropped},
        as_json,
    )


@app.command()
def dump(
    provisioning: Provisioned,
    target: Annotated[Path, typer.Argument(help="File to write (tar.gz); must not exist.")],
    as_json: Json = False,
) -> None:
    """Write what somebody who helps needs to see: no secrets, no names."""
    from hem.dump import write_dump  # noqa: PLC0415

    config, grid, now_ms = _at(provisioning)
    parts = write_dump(provisioning, config, grid, now_ms, target)
    _print({"file": str(target), "parts": parts}, as_json)


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        with private_files():
            app()
    except ConfigError as error:
        print(f"hem: {error}", file=sys.stderr)
        sys.exit(2)


def _keys(policy: Policy) -> dict[str, Any]:
    """A policy as it is written."""
    keys: dict[str, Any] = json.loads(policy.model_dump_json(by_alias=True))
    return keys


def _data_dir(provisioning: Path) -> Path:
    from hem.config import load_provisioning  # noqa: PLC0415

    return load_provisioning(provisioning).home.data_dir


def _at(provisioning: Path) -> tuple[Provisioning, SlotGrid, int]:
    """The provisioning file, the market's slots, and what time it is there [ms]."""
    from hem.config import load_market_facts, load_provisioning  # noqa: PLC0415
    from runtime.clock import clock_from_environment  # noqa: PLC0415

    config = load_provisioning(provisioning)
    facts = load_market_facts(config.market.genesis)
    return config, facts.grid, clock_from_environment().now_ms()


def _summary(provisioning: Path) -> dict[str, Any]:
    from hem.summary import summary_of  # noqa: PLC0415

    return summary_of(_data_dir(provisioning))


def _print(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(value))
        return
    for name, item in value.items():
        print(f"{name}: {item}")


if __name__ == "__main__":
    main()
