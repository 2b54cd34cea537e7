"""Rows of the tables in docs/reference/works-with.md, each of which is tested."""

import ast
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "works-with.md"


def rows(heading):
    """Return the rows of the table under a heading: ("optimiser", "`SGD`") → "works", say."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["kind", "what", "result", "how"], cells[0]
    assert {len(row) for row in cells} == {4}
    found = {(kind, what): result for kind, what, result, _ in cells[2:]}
    assert len(found) == len(cells) - 2, "two rows with one name"
    assert set(found.values()) == {"works", "refused"}
    return found


def expect_tested(heading: str, tests: dict[str, str], folder: Path) -> None:
    """Check that each row has a test of its own, and that each of these tests exists.

    Args:
        heading: of the table.
        tests: what is tried → ``file::function``, below ``folder``.
        folder: of the tests.
    """
    assert {what for _, what in rows(heading)} == set(tests)
    for test in tests.values():
        file, _, function = test.partition("::")
        nodes = ast.walk(ast.parse((folder / file).read_text(encoding="utf-8")))
        assert function in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, test
