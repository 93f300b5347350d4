//! The schema, embedded: `migrations/*.sql`, which also work by `psql -f`.

use super::error::StoreError;
use super::session::Session;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Brings the database's schema to this program's version, and makes the partitions of the months ahead
/// (`interval`: `day`, `week` or `month`). Safe to run at any time, by several at once too.
///
/// # Errors
/// See [`StoreError`]; [`StoreError::Broken`] when a migration that was applied differs from ours.
pub async fn migrate(session: &mut Session, interval: &str) -> Result<(), StoreError> {
    MIGRATIONS.run(session.connection()).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(source)
        | sqlx::migrate::MigrateError::ExecuteMigration(source, _) => StoreError::from(source),
        other => StoreError::Broken(other.to_string()),
    })?;
    sqlx::query(
        "UPDATE audit_events.partitioning SET partition_interval = $1 WHERE partition_interval <> $1",
    )
    .bind(interval)
    .execute(session.connection())
    .await?;
    session.ensure_partitions_ahead().await
}

impl Session {
    /// Makes the partitions of the months ahead.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn ensure_partitions_ahead(&mut self) -> Result<(), StoreError> {
        sqlx::query("SELECT audit_events.ensure_partitions_ahead()").execute(&mut self.connection).await?;
        Ok(())
    }
}
