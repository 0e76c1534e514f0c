"""The roles of those who project, operate and audit, beside the one that reads (``projector.roles``).

What each may is not here: ``rxstore migrate`` gives it anew each time, for the tables and generations that there are.
"""

from __future__ import annotations

from alembic import op

revision = "c0008"
down_revision = "c0007"
branch_labels = None
depends_on = None

# As for rxstore_reader in c0001: another database of the server may be making it at this moment.
CREATE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$
"""


def upgrade() -> None:
    for role in ("rxstore_project", "rxstore_operate", "rxstore_audit"):
        op.execute(CREATE.format(role=role))


def downgrade() -> None:
    """Leave the roles: other databases of the server may use them."""
