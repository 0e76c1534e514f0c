"""Runs one branch of the migrations in one schema.

``rxstore migrate`` hands over a connection and a schema. By hand, ``alembic -x schema=rx_g1 upgrade read_model@head``
runs in that schema and ``alembic upgrade control@head`` in rxstore, on RXSTORE_DATABASE_URL.
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine, text

from projector import tables


def run(connection: Connection, schema: str) -> None:
    metadata = tables.CONTROL if schema == tables.CONTROL_SCHEMA else tables.READ_MODEL
    connection.execute(text(f"SET LOCAL search_path = {schema}"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=schema,
        include_schemas=schema == tables.CONTROL_SCHEMA,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.execute(text("SET LOCAL search_path = DEFAULT"))


given = context.config.attributes.get("connection")
if given is not None:
    run(given, context.config.attributes["schema"])
else:
    url = os.environ["RXSTORE_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    with create_engine(url).begin() as connection:
        run(connection, context.get_x_argument(as_dictionary=True).get("schema", tables.CONTROL_SCHEMA))
