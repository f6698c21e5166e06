"""The cookbook as text; tests/integration/test_athena.py runs it."""

from __future__ import annotations

from pathlib import Path

from stockstream.sql.athena.engine import require_read_only
from stockstream.sql.cookbook import as_markdown, recipes

DOCS = Path(__file__).parents[3] / "docs" / "sql.md"


def test_the_documentation_has_every_recipe_as_it_is() -> None:
    """`as_markdown()` prints the section anew."""
    assert DOCS.read_text().partition("## Cookbook\n")[2].partition("\n\n### ")[2] == as_markdown().removeprefix("### ")


def test_every_recipe_has_its_parts() -> None:
    found = recipes()
    assert len(found) > 10 and len({recipe.name for recipe in found}) == len({recipe.title for recipe in found}) == len(found)
    for recipe in found:
        assert recipe.title and recipe.text.endswith(".") and not recipe.sql.endswith(";")
        require_read_only(recipe.sql)
