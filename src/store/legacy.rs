//! A schema `audit_events` that is not ours: the predecessor's table may stand under our name.
//!
//! Ours is a schema whose `events` is partitioned and has the coordinates of records. Where `events` is something else,
//! or is missing while other names of ours are taken, the schema is foreign, and [`Session::foreign_objects`] names what
//! is in the way. [`Session::adopt_legacy`] renames the whole schema: its tables go with their indexes, constraints,
//! sequences, grants, views and functions, no name can collide, and nothing is dropped, copied or locked against
//! readers. Views go on reading the same tables; functions and programs that spell the old name out do not find it.
//! One statement in one transaction, after all that could be in its way was looked at in it: it is done or not, and a
//! second time finds nothing to do.

use sqlx::{AssertSqlSafe, Row};

use super::error::StoreError;
use super::migrate::names_in_schema;
use super::session::Session;

/// The name that a schema gets which is not ours.
const LEGACY_NAME: &str = "audit_events_legacy";

/// Whether the table `c` of the schema `n` is our `events`.
const IS_OUR_EVENTS: &str = "c.relname = 'events' AND c.relkind = 'p' \
    AND 3 = (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND NOT a.attisdropped \
              AND a.attname IN ('stream_id', 'source_partition', 'source_offset'))";

/// Something in the schema `audit_events` that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignObject {
    /// Its name in the schema.
    pub name: String,
    /// `table`, `view`, `materialized view`, `sequence`, `foreign table` or `function`.
    pub kind: String,
    /// About how many rows it has, where PostgreSQL has an estimate.
    pub row_estimate: Option<i64>,
    /// Whether our schema has something of that name.
    pub is_in_the_way: bool,
}

/// What became of a schema that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaAdoption {
    /// There is none in our way.
    Nothing,
    /// It has another name now.
    Renamed(AdoptedSchema),
    /// It would not do, and why, with what to do instead. Nothing was changed.
    Refused(String),
}

/// A schema that was renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedSchema {
    /// Its name now.
    pub name: &'static str,
    /// What is in it.
    pub objects: Vec<ForeignObject>,
}

impl Session {
    /// What stands in the schema `audit_events` when that is not ours; empty when it is ours, missing, or holds nothing
    /// in our way.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn foreign_objects(&mut self) -> Result<Vec<ForeignObject>, StoreError> {
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                             WHERE n.nspname = 'audit_events' AND {IS_OUR_EVENTS}) AS is_ours"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await?;
        if row.try_get("is_ours")? {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT c.relname::text AS name, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' \
                        WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind, \
                    CASE WHEN c.relkind = 'r' AND c.reltuples >= 0 THEN c.reltuples::bigint END AS row_estimate, \
                    c.relname = ANY ($1) AS is_in_the_way \
               FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE n.nspname = 'audit_events' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') \
              UNION ALL \
             SELECT p.oid::regprocedure::text, 'function', NULL, false \
               FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = 'audit_events' \
              ORDER BY is_in_the_way DESC, kind, name",
        )
        .bind(names_in_schema())
        .fetch_all(&mut self.connection)
        .await?;
        let objects = rows
            .iter()
            .map(|row| {
                Ok(ForeignObject {
                    name: row.try_get("name")?,
                    kind: row.try_get("kind")?,
                    row_estimate: row.try_get("row_estimate")?,
                    is_in_the_way: row.try_get("is_in_the_way")?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(if objects.iter().any(|object| object.is_in_the_way) { objects } else { Vec::new() })
    }

    /// Renames a schema `audit_events` that is not ours to `audit_events_legacy`, unless that name is taken, or
    /// migrating would make no schema of ours afterwards: it was made here before, and has another name now.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped. [`StoreError::Misconfigured`] (42501) for a role that does
    /// not own the schema, or may not create one in the database.
    pub async fn adopt_legacy(&mut self) -> Result<SchemaAdoption, StoreError> {
        // One at a time, and not while another one migrates.
        let begin = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('audit-consumer/adopt-legacy', 0))";
        sqlx::raw_sql(begin).execute(&mut self.connection).await?;
        let objects = self.foreign_objects().await?;
        let adoption = match objects.is_empty() {
            true => SchemaAdoption::Nothing,
            false => match self.obstacle().await? {
                Some(obstacle) => SchemaAdoption::Refused(obstacle),
                None => SchemaAdoption::Renamed(AdoptedSchema { name: LEGACY_NAME, objects }),
            },
        };
        let end = match &adoption {
            SchemaAdoption::Renamed(_) => "ALTER SCHEMA audit_events RENAME TO audit_events_legacy; COMMIT",
            SchemaAdoption::Nothing | SchemaAdoption::Refused(_) => "ROLLBACK",
        };
        sqlx::raw_sql(end).execute(&mut self.connection).await?;
        Ok(adoption)
    }

    /// Why a foreign schema `audit_events` can't be renamed, and what to do.
    async fn obstacle(&mut self) -> Result<Option<String>, StoreError> {
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{LEGACY_NAME}') AS is_taken, \
                    (SELECT min(quote_ident(n.nspname)) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                      WHERE {IS_OUR_EVENTS}) AS ours"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await?;
        let (is_taken, ours): (bool, Option<String>) = (row.try_get("is_taken")?, row.try_get("ours")?);
        if is_taken {
            return Ok(Some(format!(
                "there is a schema {LEGACY_NAME} already; give it another name first: \
                 `ALTER SCHEMA {LEGACY_NAME} RENAME TO {LEGACY_NAME}_1`"
            )));
        }
        if !self.is_migrated().await? {
            return Ok(None);
        }
        Ok(Some(match ours {
            Some(ours) => format!(
                "this program's schema was made in this database before and is called {ours} now, so none would be made \
                 again; change the names instead, in one go: `BEGIN; ALTER SCHEMA audit_events RENAME TO {LEGACY_NAME}; \
                 ALTER SCHEMA {ours} RENAME TO audit_events; COMMIT`, then run `audit-consumer migrate`"
            ),
            None => "this program's schema was made in this database before and is gone, but the table _sqlx_migrations \
                     says that it was made, so none would be made again; bring it back from a backup, or, if it was \
                     dropped on purpose, drop _sqlx_migrations, too, and run this again"
                .to_owned(),
        }))
    }
}
