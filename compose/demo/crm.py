"""The material of the demo: a small customer database and a small git repository."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

CUSTOMERS = 200
ORDERS = 3000
SEED = 20
FIRST = ("Ada", "Björn", "Chen", "Dalia", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jun")
LAST = ("Adeyemi", "Brandt", "Costa", "Dubois", "Eriksson", "Fischer", "Gupta", "Haddad")
PLANS = ("free", "team", "business")

_TABLES = """
    CREATE TABLE customers (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, plan TEXT NOT NULL
    );
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers (id),
        amount INTEGER NOT NULL
    );
    CREATE TABLE reports (id INTEGER PRIMARY KEY, name TEXT NOT NULL, value INTEGER NOT NULL);
"""


def make_crm(path: Path) -> None:
    """Make the customer database, the same one every time."""
    chance = random.Random(SEED)
    people = [(chance.choice(FIRST), chance.choice(LAST)) for _ in range(CUSTOMERS)]
    customers = [
        (n, f"{first} {last}", f"{last.lower()}.{n}@customers.example", chance.choice(PLANS))
        for n, (first, last) in enumerate(people, 1)
    ]
    orders = [
        (n, chance.randint(1, CUSTOMERS), chance.randint(5, 5000)) for n in range(1, ORDERS + 1)
    ]
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(_TABLES)
        database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", customers)
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", orders)


def customer(number: int) -> str:
    """Return the query for one customer."""
    return f"SELECT * FROM customers WHERE id = {number:d}"  # noqa: S608 - a number


def compare_orders(third: int = ORDERS) -> str:
    """Return a query that compares all pairs of orders with each of the first ``third``.

    Slow on purpose: each of those costs a good part of a second, and nobody waits for all of them.
    """
    return (
        "SELECT count(*) AS triples FROM orders a, orders b, orders c"  # noqa: S608 - a number
        f" WHERE a.amount < b.amount AND b.amount < c.amount AND c.id <= {third:d}"
    )


SLOW_WRITE = f"INSERT INTO reports (name, value) SELECT '', n.* FROM ({compare_orders()}) n"  # noqa: S608


def reports(path: Path) -> int:
    """Return how many reports were written."""
    with closing(sqlite3.connect(path)) as database:
        (count,) = database.execute("SELECT count(*) FROM reports").fetchone()
        return int(count)


def make_repository(path: Path) -> None:
    """Make a git repository with a few commits; raise `RuntimeError` when git fails."""
    path.mkdir()
    _git(path, "init", "--quiet", "--initial-branch=main")
    for number, title in enumerate(("Add the price list", "Add discounts", "Round to cents"), 1):
        (path / "prices.py").write_text(f"PRICES = {{'team': {number}0, 'business': {number}5}}\n")
        _git(path, "add", "prices.py")
        _git(path, "commit", "--quiet", "--message", title)


def _git(path: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Ada Adeyemi", "-c", "user.email=ada@company.example")
    # The demo neither reads nor needs the git configuration of whoever runs it.
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *who, "-C", str(path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]} failed: {done.stderr.strip()}")
