"""The tables of the page "What works with what", whose rows tests run one by one."""

import ast
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "works-with.md"


def rows(heading: str) -> dict[str, str]:
    """Return the rows of the table under a heading: what is tried → the result."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: result for first, result, *_ in cells[2:]}


def expect_tested(heading: str, tests: dict[str, str], folder: Path) -> None:
    """Check that each row has a test of its own, and that each of these tests exists.

    Args:
        heading: of the table.
        tests: row → ``file::function``, below ``folder``.
        folder: of the tests.
    """
    assert set(rows(heading)) == set(tests)
    for test in tests.values():
        file, _, function = test.partition("::")
        names = {node.name for node in ast.walk(ast.parse((folder / file).read_text())) if _is_function(node)}
        assert function in names, test


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)
