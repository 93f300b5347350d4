//! A schema `audit_events` that is not ours: the predecessor's table may stand under our name.
//!
//! Ours is a schema whose `events` is partitioned and has the coordinates of records. Where `events` is something else,
//! or is missing while other names of ours are taken, the schema is foreign, and [`Session::foreign_objects`] names what
//! is in the way. [`Session::adopt_legacy`] renames the whole schema: its tables go with their indexes, constraints,
//! sequences, grants, views and functions, no name can collide, and nothing is dropped, copied or locked against
//! readers. Views go on reading the same tables; functions and programs that spell the old name out do not find it.
//! One statement in one transaction: it is done or not, and a second time finds nothing to do.

use sqlx::{AssertSqlSafe, Row};

use super::error::StoreError;
use super::migrate::names_in_schema;
use super::session::Session;

/// How many names are tried for the old schema.
const NAME_MAX_COUNT: u32 = 100;

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

/// A schema that was renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedSchema {
    /// Its name now.
    pub name: String,
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
        let row = sqlx::query(
            "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                             WHERE n.nspname = 'audit_events' AND c.relname = 'events' AND c.relkind = 'p' \
                               AND 3 = (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND NOT a.attisdropped \
                                         AND a.attname IN ('stream_id', 'source_partition', 'source_offset'))) AS is_ours",
        )
        .fetch_one(&mut self.connection)
        .await?;
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

    /// Renames a schema `audit_events` that is not ours to `audit_events_legacy`, or to that with a number when the name
    /// is taken. `None`: there is nothing in our way.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped. [`StoreError::Misconfigured`] (42501) for a role that does
    /// not own the schema, or may not create one in the database.
    pub async fn adopt_legacy(&mut self) -> Result<Option<AdoptedSchema>, StoreError> {
        // One at a time, and not while another one migrates.
        let begin = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('audit-consumer/adopt-legacy', 0))";
        sqlx::raw_sql(begin).execute(&mut self.connection).await?;
        let objects = self.foreign_objects().await?;
        if objects.is_empty() {
            sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(None);
        }
        let taken =
            sqlx::query("SELECT nspname::text FROM pg_namespace").fetch_all(&mut self.connection).await?;
        let taken: Vec<String> = taken.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let mut names = (1..=NAME_MAX_COUNT).map(|number| match number {
            1 => "audit_events_legacy".to_owned(),
            number => format!("audit_events_legacy_{number}"),
        });
        let Some(name) = names.find(|name| !taken.contains(name)) else {
            return Err(StoreError::Broken(format!(
                "{NAME_MAX_COUNT} schemas audit_events_legacy are there"
            )));
        };
        let rename = format!("ALTER SCHEMA audit_events RENAME TO {name}; COMMIT");
        sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut self.connection).await?;
        Ok(Some(AdoptedSchema { name, objects }))
    }
}
