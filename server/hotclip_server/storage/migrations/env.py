"""Run by Alembic for each command; the connection comes from `migrate.upgrade`.

It does not touch logging: that is the server's.
"""

from alembic import context

from hotclip_server.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    # SQLite can't alter most of a table in place; batch mode copies it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
