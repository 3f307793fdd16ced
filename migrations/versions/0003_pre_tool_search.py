"""The words of each tool version, for searching tools by intent.

A trigger writes them, so that releases that know nothing of them go on working. It reads no more
than the beginning of a text, and nothing that a server lists can make it fail: a tool is recorded
whatever it says. The weights are part of the rows: a change of them is a new migration.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# A: name and title. B: the server, and how the description begins. C: the rest of it, and the names
# of parameters. D: what is said about them. The weights are those of {D,C,B,A}; a word of a longer
# text weighs less (1). A path, a host or a camelCased name is several words.
TOOL_WORDS = r"""
CREATE FUNCTION tool_words(server_name text, name text, definition jsonb)
RETURNS TABLE (lexeme text, weight real) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    called text := left(name, 200) || ' ' || left(coalesce(definition->>'title', ''), 200);
    described text := left(coalesce(definition->>'description', ''), 2000);
    parameters text := left(coalesce(CAST(jsonb_path_query_array(definition,
        '$.inputSchema.properties.keyvalue().key', '{}', true) AS text), ''), 2000);
    explained text := left(coalesce(CAST(jsonb_path_query_array(definition,
        '$.inputSchema.properties.**{1 to 4}.description ? (@.type() == "string")',
        '{}', true) AS text), ''), 2000);
    camel text := '([a-z0-9])([A-Z])';
    texts text[] := ARRAY[
        regexp_replace(called, camel, '\1 \2', 'g'),
        left(server_name, 200) || ' ' || left(described, 200),
        substr(described, 201) || ' ' || regexp_replace(parameters, camel, '\1 \2', 'g'),
        explained];
    vector tsvector := '';
BEGIN
    FOR part IN 1..4 LOOP
        vector := vector || setweight(
            to_tsvector('english', translate(texts[part], '/._:', '    ')),
            substr('ABCD', part, 1)::"char");
    END LOOP;
    RETURN QUERY SELECT word.lexeme, ts_rank('{0.2,0.4,0.7,1}', vector, CAST(
            '''' || replace(replace(word.lexeme, '\', '\\'), '''', '''''') || '''' AS tsquery), 1)
        FROM unnest(vector) AS word;
END $$
"""

INDEX_TOOL_WORDS = """
CREATE FUNCTION index_tool_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tool_terms (lexeme, tool_version_id, weight)
    SELECT lexeme, NEW.id, weight FROM tool_words(NEW.server_name, NEW.name, NEW.definition);
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Create the table and what fills it, and fill it with the tools known so far."""
    op.create_table(
        "tool_terms",
        sa.Column("lexeme", sa.Text(), nullable=False),
        sa.Column("tool_version_id", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.REAL(), nullable=False),
        # It covers the weight: a search reads this index and nothing else.
        sa.PrimaryKeyConstraint(
            "lexeme",
            "tool_version_id",
            name=op.f("pk_tool_terms"),
            postgresql_include=["weight"],
        ),
    )
    op.execute(TOOL_WORDS)
    op.execute(INDEX_TOOL_WORDS)
    op.execute(
        "CREATE TRIGGER index_tool_words AFTER INSERT ON tool_versions"
        " FOR EACH ROW EXECUTE FUNCTION index_tool_words()"
    )
    op.execute(
        "INSERT INTO tool_terms (lexeme, tool_version_id, weight)"
        " SELECT word.lexeme, tool.id, word.weight FROM tool_versions AS tool,"
        " tool_words(tool.server_name, tool.name, tool.definition) AS word"
    )


def downgrade() -> None:
    """Drop the words; tools stay."""
    op.execute("DROP TRIGGER index_tool_words ON tool_versions")
    op.execute("DROP FUNCTION index_tool_words()")
    op.execute("DROP FUNCTION tool_words(text, text, jsonb)")
    op.drop_table("tool_terms")
