"""Alembic's two branches: ``control`` runs once in schema rxstore, ``read_model`` in every generation's schema."""
