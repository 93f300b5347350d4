//! The schema, embedded: `migrations/*.sql`, which also work by `psql -f`.

use sqlx::Row;

use super::error::StoreError;
use super::session::Session;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// Brings the database's schema to this program's version, and makes the partitions of the months ahead
/// (`interval`: `day`, `week` or `month`). Safe to run at any time, by several at once too. Returns the roles that are
/// missing, as we may not make them.
///
/// # Errors
/// See [`StoreError`]; [`StoreError::Broken`] when a migration that was applied differs from ours.
pub async fn migrate(session: &mut Session, interval: &str) -> Result<Vec<String>, StoreError> {
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
    session.ensure_partitions_ahead().await?;
    // Each time: a role may have been made since.
    let row = sqlx::query("SELECT audit_events.grant_roles()").fetch_one(session.connection()).await?;
    sqlx::query("SELECT audit_events.grant_retention()").execute(session.connection()).await?;
    Ok(row.try_get(0)?)
}

/// The names in the schema `audit_events` that the migrations speak of: whatever they make, and more.
pub(super) fn names_in_schema() -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names: Vec<String> = MIGRATIONS
        .iter()
        .flat_map(|migration| migration.sql.as_str().split("audit_events.").skip(1))
        .filter_map(|rest| rest.split(|c| !is_name(c)).next())
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Session {
    /// Whether the database records that a migration of ours was applied. It is then not applied again, wherever what it
    /// made is now.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(super) async fn is_migrated(&mut self) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut self.connection)
            .await?;
        if !row.try_get::<bool, _>(0)? {
            return Ok(false);
        }
        let versions: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let row = sqlx::query("SELECT EXISTS (SELECT FROM _sqlx_migrations WHERE version = ANY ($1))")
            .bind(versions)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// Makes the partitions of the months ahead.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn ensure_partitions_ahead(&mut self) -> Result<(), StoreError> {
        sqlx::query("SELECT audit_events.ensure_partitions_ahead()").execute(&mut self.connection).await?;
        Ok(())
    }
}
