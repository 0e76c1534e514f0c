"""A client of the API is known by its certificate too: by fingerprints, or by subject and issuer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c0007"
down_revision = "c0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "client",
        sa.Column("fingerprints", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        schema="rxstore",
    )
    op.add_column("client", sa.Column("subject", sa.Text(), nullable=True), schema="rxstore")
    op.add_column("client", sa.Column("issuer", sa.Text(), nullable=True), schema="rxstore")
    op.create_check_constraint(
        "client_identity_check", "client", "(subject IS NULL) = (issuer IS NULL)", schema="rxstore"
    )


def downgrade() -> None:
    op.drop_constraint("client_identity_check", "client", schema="rxstore", type_="check")
    for name in ("issuer", "subject", "fingerprints"):
        op.drop_column("client", name, schema="rxstore")
