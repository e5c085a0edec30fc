"""Run migrations on the connection, and inside the transaction, that `storage.migrate` hands over."""

from alembic import context

from storage.schedule_tables import metadata  # the last module of tables: it has them all

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
