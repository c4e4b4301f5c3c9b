"""The ER diagram of the tables, as Mermaid in Markdown: `python -m tests.diagram > MODEL.md`."""

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from adventureworks import model


def markdown() -> str:
    """Return the page."""
    tables = [line for table in model.TABLES.values() for line in (*_entity(table), *_references(table))]
    return "\n".join(["# Tables", "", "```mermaid", "erDiagram", *tables, "```"])


def _entity(table: sa.Table) -> Iterator[str]:
    yield f'    {table.name}["{table.fullname}"] {{'
    foreign = {column.name for key in table.foreign_key_constraints for column in key.columns}
    for column in table.columns:
        roles = [role for role, has in (("PK", column.primary_key), ("FK", column.name in foreign)) if has]
        # Mermaid takes no comma in a type.
        kind = column.type.compile(postgresql.dialect()).partition("(")[0].split(" ")[0].lower()
        yield f"        {kind} {column.name} {','.join(roles)}".rstrip()
    yield "    }"


def _references(table: sa.Table) -> Iterator[str]:
    for key in sorted(table.foreign_key_constraints, key=lambda key: list(key.column_keys)):
        optional = any(column.nullable for column in key.columns)
        loose = " (enforced once whole)" if model.ONCE_WHOLE in key.info else ""
        label = ", ".join(key.column_keys) + loose
        yield f'    {key.referred_table.name} {"|o" if optional else "||"}--o{{ {table.name} : "{label}"'


if __name__ == "__main__":
    print(markdown())
