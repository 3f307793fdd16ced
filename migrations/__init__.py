"""The history of the record's shape, applied by Alembic."""
