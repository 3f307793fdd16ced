"""Promises and tests, joined in both directions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import REQUIREMENTS, requirement

TESTS = Path(__file__).parents[1]


def _claims() -> Iterator[tuple[str, str]]:
    """Yield (test, id) for each id that a `@requirement(...)` in any test file names."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "requirement":
                    for argument in decorator.args:
                        yield f"{path.name}::{node.name}", ast.literal_eval(argument)


@requirement("tests:every-promise-is-tested")
def test_every_requirement_has_a_test() -> None:
    assert set(REQUIREMENTS) - {id_ for _, id_ in _claims()} == set()


@requirement("tests:every-promise-is-tested")
def test_every_id_a_test_names_is_a_requirement() -> None:
    assert {claim for claim in _claims() if claim[1] not in REQUIREMENTS} == set()
