//! The registry of federated sources: names, and where their handlers and credentials live. Holds no secret; the
//! caller looks for them before it adds.

use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::StoreError;
use super::session::Session;
use crate::model::federated::FederatedSources;

/// The columns that [`source_of`] reads.
const COLUMNS: &str = "source_id, source_name, source_type, auth_type, handler_path, enabled, audit_enabled, \
    purview_compatible, metadata, changed_by, \
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at, \
    to_char(changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS changed_at";

/// A source to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSource<'a> {
    /// Its name; no other has it.
    pub name: &'a str,
    /// What kind of source it is.
    pub source_type: &'a str,
    /// How its handler logs in.
    pub auth_type: &'a str,
    /// Where its handler is.
    pub handler_path: &'a str,
    /// Further facts: an object.
    pub metadata: &'a Value,
    /// Whether it may be asked.
    pub is_enabled: bool,
}

/// A source of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What kind of source it is.
    pub source_type: String,
    /// How its handler logs in.
    pub auth_type: String,
    /// Where its handler is.
    pub handler_path: String,
    /// Whether it may be asked.
    pub is_enabled: bool,
    /// Whether questions to it are audited.
    pub is_audited: bool,
    /// Whether its events go to the Purview log.
    pub is_purview_compatible: bool,
    /// Further facts.
    pub metadata: Value,
    /// When it was added: RFC 3339 in UTC.
    pub created_at: String,
    /// When it was added, enabled or disabled last: RFC 3339 in UTC.
    pub changed_at: String,
    /// Who did that.
    pub changed_by: String,
}

impl Session {
    /// The registry as far as events are compared with it: all of its names, as many as operators have added.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn federated_sources(&mut self) -> Result<FederatedSources, StoreError> {
        let rows = sqlx::query("SELECT source_name, enabled FROM audit_events.federated_sources")
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| Ok((row.try_get("source_name")?, row.try_get("enabled")?))).collect()
    }

    /// The sources by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sources(&mut self) -> Result<Vec<SourceRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM audit_events.federated_sources ORDER BY source_name");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut self.connection).await?;
        rows.iter().map(source_of).collect()
    }

    /// The source of that name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn source(&mut self, name: &str) -> Result<Option<SourceRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM audit_events.federated_sources WHERE source_name = $1");
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(name);
        let row = query.fetch_optional(&mut self.connection).await?;
        row.as_ref().map(source_of).transpose()
    }

    /// Adds a source; `None`: there is one of that name, and nothing changed.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Refused`] for what PostgreSQL can't hold.
    pub async fn add_source(
        &mut self,
        source: &NewSource<'_>,
        actor: &str,
    ) -> Result<Option<SourceRow>, StoreError> {
        let sql = format!(
            "INSERT INTO audit_events.federated_sources \
                    (source_name, source_type, auth_type, handler_path, metadata, enabled, changed_by) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (source_name) DO NOTHING RETURNING {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(source.name)
            .bind(source.source_type)
            .bind(source.auth_type)
            .bind(source.handler_path)
            .bind(source.metadata)
            .bind(source.is_enabled)
            .bind(actor)
            .fetch_optional(&mut self.connection)
            .await?;
        row.as_ref().map(source_of).transpose()
    }

    /// Enables or disables the source of that name; `None`: there is none. One that is so already keeps who did it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn enable_source(
        &mut self,
        name: &str,
        is_enabled: bool,
        actor: &str,
    ) -> Result<Option<SourceRow>, StoreError> {
        sqlx::query(
            "UPDATE audit_events.federated_sources SET enabled = $2, changed_at = now(), changed_by = $3 \
              WHERE source_name = $1 AND enabled <> $2",
        )
        .bind(name)
        .bind(is_enabled)
        .bind(actor)
        .execute(&mut self.connection)
        .await?;
        self.source(name).await
    }
}

fn source_of(row: &PgRow) -> Result<SourceRow, StoreError> {
    Ok(SourceRow {
        id: row.try_get("source_id")?,
        name: row.try_get("source_name")?,
        source_type: row.try_get("source_type")?,
        auth_type: row.try_get("auth_type")?,
        handler_path: row.try_get("handler_path")?,
        is_enabled: row.try_get("enabled")?,
        is_audited: row.try_get("audit_enabled")?,
        is_purview_compatible: row.try_get("purview_compatible")?,
        metadata: row.try_get("metadata")?,
        created_at: row.try_get("created_at")?,
        changed_at: row.try_get("changed_at")?,
        changed_by: row.try_get("changed_by")?,
    })
}
