"""`csmdb advisory` and `csmdb meter`: the knowledge base, and what firmware a meter runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wire.errors import ConfigError

if TYPE_CHECKING:
    from csmdb.advisories import Review
    from csmdb.setup import CsmDb

app = typer.Typer(
    help="Security advisories (CSAF 2.0), and the meters they name.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="Folder of the CSM-DB.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("import")
def import_advisories(
    folder: Folder,
    paths: Annotated[list[Path], typer.Argument(help="CSAF files, or folders of them.")],
    as_json: Json = False,
) -> None:
    """
    Take advisories in, look at every meter, ban and let in. Exit code 1: a file was refused.

    A revision older than the one that is known is refused ROLLED_BACK.
    """
    from csmdb.advisories import import_path, review_all  # noqa: PLC0415  (help is quick)

    with _open(folder) as csmdb:
        done = [one for path in paths for one in import_path(csmdb, path)]
        reviews = review_all(csmdb, "operator")
    refused = [one for one in done if not one.advisory]
    if as_json:
        told = {"imported": [asdict(one) for one in done], "meters": _rows(reviews)}
        print(json.dumps(told))
    else:
        for one in done:
            print(f"{one.outcome:12} {one.advisory} {one.revision}  {one.source} {one.detail}")
        _print_reviews(reviews)
    if refused:
        raise typer.Exit(1)


@app.command("list")
def list_all(folder: Folder, as_json: Json = False) -> None:
    """List the advisories that are known."""
    from csmdb.knowledge_rows import KnowledgeRows  # noqa: PLC0415

    with _open(folder) as csmdb:
        known = KnowledgeRows(csmdb.repository.db).advisories()
    if as_json:
        print(json.dumps([asdict(one) for one in known]))
        return
    for one in known:
        print(f"{one.id:24} {one.version:8} {one.publisher}: {one.title}")


@app.command()
def show(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The advisory's id.")],
    as_json: Json = False,
) -> None:
    """Show which products and versions an advisory names."""
    from csmdb.advisories import find  # noqa: PLC0415
    from csmdb.csaf import read_advisory  # noqa: PLC0415
    from csmdb.knowledge_rows import KnowledgeRows  # noqa: PLC0415

    with _open(folder) as csmdb:
        known = next(find(csmdb, name), None)
        if known is None:
            raise ConfigError(f"{name}: no such advisory; see `csmdb advisory list`")
        text = KnowledgeRows(csmdb.repository.db).document(known.digest)
    advisory = read_advisory(text.encode())
    rows = [
        {
            "cve": weakness.cve, "status": status, "vendor": product.vendor,
            "models": list(product.models), "versions": product.versions.text,
            "readable": product.versions.readable,
        }
        for weakness in advisory.vulnerabilities
        for status in ("affected", "fixed", "not_affected", "under_investigation")
        for product in getattr(weakness, status)
    ]  # fmt: skip
    if as_json:
        print(json.dumps({**asdict(known), "products": rows}))
        return
    print(f"{known.id} {known.version}  {known.publisher}: {known.title}")
    for row in rows:
        note = "" if row["readable"] else "  (not understood: any version counts)"
        models = " / ".join(row["models"])
        print(f"{row['cve']}  {row['status']}: {row['vendor']} {models} {row['versions']}{note}")


@app.command()
def match(folder: Folder, as_json: Json = False) -> None:
    """Look at every meter now; print those that an advisory names."""
    from csmdb.advisories import review_all  # noqa: PLC0415

    with _open(folder) as csmdb:
        reviews = review_all(csmdb, "operator")
    if as_json:
        print(json.dumps({"meters": _rows(reviews)}))
    else:
        _print_reviews(reviews)


@app.command()
def forget(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The advisory's id.")],
    as_json: Json = False,
) -> None:
    """
    Take an advisory out, such as a forged one; bans that only it supports end.

    Any revision of it can be imported after this; this very text by `import` only.
    """
    from csmdb.advisories import find, review_all  # noqa: PLC0415
    from csmdb.forgetting import forget, the_one  # noqa: PLC0415

    with _open(folder) as csmdb:
        known = the_one(list(find(csmdb, name)), name)
        forget(csmdb.repository, known, csmdb.clock.now_ms(), "operator")
        reviews = review_all(csmdb, "operator")
    if as_json:
        print(json.dumps({"forgotten": asdict(known), "meters": _rows(reviews)}))
        return
    print(f"forgotten    {known.id} {known.version}")
    _print_reviews(reviews)


@app.command()
def alias(
    folder: Folder,
    plate: Annotated[list[str], typer.Option(help="Maker, then (again) model, of the plate.")],
    named: Annotated[list[str], typer.Option(help="Maker, then (again) model, of advisories.")],
    other: Annotated[bool, typer.Option("--not", help="They are two products.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Forget it.")] = False,
) -> None:
    """Say that a plate and an advisory name one product, or two; meters are looked at again."""
    from csmdb.advisories import review_all, say_alias  # noqa: PLC0415
    from csmdb.product_names import Alias  # noqa: PLC0415

    if len(plate) != 2 or len(named) != 2:
        raise ConfigError("alias: give --plate and --named twice each, first maker, then model")
    with _open(folder) as csmdb:
        names = (plate[0], plate[1], named[0], named[1])
        say_alias(csmdb, Alias(*names, same=not other), remove=remove)
        _print_reviews(review_all(csmdb, "operator"))


@app.command()
def aliases(folder: Folder, as_json: Json = False) -> None:
    """List what was said of names."""
    from csmdb.knowledge_rows import KnowledgeRows  # noqa: PLC0415

    with _open(folder) as csmdb:
        known = KnowledgeRows(csmdb.repository.db).aliases()
    if as_json:
        print(json.dumps([asdict(one) for one in known]))
        return
    for one in known:
        sign = "is" if one.same else "is not"
        print(f"{one.plate_vendor} {one.plate_model}  {sign}  {one.vendor} {one.model}")


def meter(
    folder: Folder,
    participant: str,
    firmware: Annotated[str, typer.Option(help="Version that it runs.")],
    vendor: Annotated[str, typer.Option(help="Maker on the plate; empty: as it is known.")] = "",
    model: Annotated[str, typer.Option(help="Model on the plate; empty: as it is known.")] = "",
    as_json: Json = False,
) -> None:
    """Say what firmware a meter runs, and look at it: a ban may come of it, or end."""
    from csmdb.advisories import set_make  # noqa: PLC0415

    with _open(folder) as csmdb:
        review = set_make(csmdb, participant, firmware, vendor=vendor, model=model)
    if as_json:
        print(json.dumps(_rows([review])[0]))
    else:
        _print_reviews([review])


def _open(folder: Path) -> CsmDb:
    from csmdb.setup import open_csmdb  # noqa: PLC0415

    return open_csmdb(folder)


def _rows(reviews: Sequence[Review]) -> list[dict[str, Any]]:
    return [asdict(one) for one in reviews]


def _print_reviews(reviews: Sequence[Review]) -> None:
    for one in reviews:
        state = "banned" if one.banned else "not banned"
        print(f"{one.participant}  {state}{' (changed)' if one.changed else ''}")
        for finding in one.findings:
            doubt = "" if finding.certain else ", version not comparable"
            kind = "" if finding.bans else ", under investigation"
            fixed = f", fixed in {', '.join(finding.fixed_in)}" if finding.fixed_in else ""
            print(
                f"    {finding.advisory} {finding.cve}: {finding.product} {finding.versions}"
                f"{doubt}{kind}{fixed}"
            )
