"""
Who may import whom (docs/concepts/README.md), checked on the source.

A failure names the arrow: `hem/ems/wallet.py:12: hem -> csmdb.messages`.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "aggregator", "analytics", "bench", "broker", "csmdb", "hem", "ledger", "market", "runtime",
    "sim", "wire",
}  # fmt: skip
SERVICES = {"aggregator", "analytics", "broker", "csmdb", "hem"}
ANYTHING = PACKAGES
MAY_IMPORT = {
    "wire": set(),
    "market": {"wire"},
    "runtime": {"wire"},
    "ledger": {"wire", "market", "runtime"},
    **{service: {"wire", "market", "runtime", "ledger"} for service in SERVICES},
    "sim": ANYTHING - {"bench"},
    "bench": ANYTHING,
}
LEDGER_FOR_READERS = {
    "ledger.approvals", "ledger.asking", "ledger.checkpoint", "ledger.client", "ledger.genesis",
    "ledger.light", "ledger.light_sync", "ledger.rulebook",
}  # fmt: skip
"""What a service may import of the ledger: the interface for those who read the chain."""
IMPURE = {
    "asyncio", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "sqlite3", "sqlite_utils", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib",
}  # fmt: skip
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input", "read_text"}
PURE = ("wire", "market", "ledger/contracts")
PURE_FILES = ("ledger/simplex.py", "ledger/merkle.py", "ledger/types.py", "ledger/smt.py",
              "ledger/poe.py", "ledger/state.py")  # fmt: skip
ONLY_RUNTIME = {"paho"}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, module) for every import, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join((*above, base)).rstrip(".")
            # `from ledger import client` imports ledger.client
            names = [f"{base}.{name.name}" for name in node.names] if "." not in base else [base]
            yield from ((node.lineno, name) for name in names)


def broken_arrows(source: str, path: Path) -> list[str]:
    """The imports of one file that the rules forbid."""
    package = path.parent.parts
    own = package[0]
    found = []
    for line, module in imports_of(ast.parse(source), package):
        target = module.split(".")[0]
        if target in ONLY_RUNTIME and own != "runtime":
            found.append(f"{path}:{line}: {own} -> {module} (only runtime may)")
        if target not in PACKAGES or target == own:
            continue
        reads_too_deep = (
            target == "ledger"
            and own in SERVICES
            and not any(f"{module}.".startswith(f"{allowed}.") for allowed in LEDGER_FOR_READERS)
        )
        if target not in MAY_IMPORT[own] or reads_too_deep:
            found.append(f"{path}:{line}: {own} -> {module}")
    return found


def impurities(source: str, path: Path) -> list[str]:
    """Imports and calls in a pure module that reach for a clock, chance or the world."""
    tree = ast.parse(source)
    found = [
        f"{path}:{line}: imports {module}"
        for line, module in imports_of(tree, path.parent.parts)
        if module.split(".")[0] in IMPURE
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "id", None) or getattr(function, "attr", None)
            of_self = isinstance(function, ast.Attribute) and name == "open"  # BoxKey.open
            if name in IMPURE_CALLS and not of_self:
                found.append(f"{path}:{node.lineno}: calls {name}()")
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_follow_the_arrows(package):
    broken = []
    for path in files_of(package):
        broken += broken_arrows(path.read_text(), path.relative_to(ROOT))
    assert not broken, "\n".join(broken)


def test_the_pure_core_reaches_for_no_clock_chance_or_file():
    paths = [path for package in PURE for path in files_of(package)]
    paths += [ROOT / name for name in PURE_FILES]
    found = []
    for path in paths:
        found += impurities(path.read_text(), path.relative_to(ROOT))
    assert not found, "\n".join(found)


def test_every_folder_with_code_is_a_package_that_is_shipped():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in files_of(package)
    }
    assert set(listed) == folders
    assert listed == sorted(listed)
    for folder in folders:
        assert (ROOT / folder.replace(".", "/") / "__init__.py").exists(), folder
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists(), package


def test_ruff_and_mypy_know_the_same_packages():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(tools["ruff"]["lint"]["isort"]["known-first-party"]) == PACKAGES
    assert set(tools["mypy"]["packages"]) == PACKAGES


@pytest.mark.parametrize(
    ("path", "source", "arrow"),
    [
        ("wire/x.py", "import market", "wire -> market"),
        ("market/x.py", "from runtime.clock import SystemClock", "market -> runtime.clock"),
        ("hem/ems/x.py", "from csmdb import messages", "hem -> csmdb.messages"),
        ("hem/ems/x.py", "def f():\n    import ledger.state", "hem -> ledger.state"),
        ("hem/ems/x.py", "from ledger import state", "hem -> ledger.state"),
        ("hem/ems/x.py", "from ...ledger import state", "hem -> ledger.state"),
        ("runtime/x.py", "from sim.homes import Home", "runtime -> sim.homes"),
        ("broker/x.py", "import paho.mqtt.client", "broker -> paho.mqtt.client (only runtime may)"),
        ("sim/x.py", "import bench.speed", "sim -> bench.speed"),
    ],
)
def test_a_broken_arrow_is_named(path, source, arrow):
    (found,) = broken_arrows(source, Path(path))
    assert found.endswith(arrow)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("hem/ems/x.py", "from ledger.client import LedgerClient"),
        ("hem/ems/x.py", "from ledger import client"),
        ("hem/ems/x.py", "from ..gateway import rpc"),
        ("sim/x.py", "from csmdb.setup import create"),
        ("runtime/x.py", "import paho.mqtt.client"),
        ("wire/x.py", "import json\nfrom wire import keys"),
    ],
)
def test_a_lawful_arrow_is_not_reported(path, source):
    assert broken_arrows(source, Path(path)) == []


@pytest.mark.parametrize(
    "source",
    ["import time", "from os import path", "import random", "datetime.now(UTC)", "uuid.uuid4()",
     "open('x')"],
)  # fmt: skip
def test_an_impurity_is_seen(source):
    assert len(impurities(source, Path("wire/x.py"))) == 1
