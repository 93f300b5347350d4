//! What a session's role may do against "append only": nobody who only stores needs any of it, so where it is there the
//! promise rests on what the role does not do, and not on PostgreSQL.

use sqlx::Row;

use super::error::StoreError;
use super::session::Session;

/// The tables that are append only, their partitions too: `oid`, `relname`, `relowner`.
const TABLES: &str = "tables AS ( \
    SELECT c.oid, c.relname, c.relowner FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE n.nspname = 'audit_events' \
       AND (EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND t.tgname = 'append_only') \
            OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid \
                          AND i.inhparent = to_regclass('audit_events.events'))))";
/// The roles that the session is or may become by SET ROLE.
const ROLES: &str = "roles AS ( \
    SELECT oid, rolname, rolsuper, rolcreaterole FROM pg_roles \
     WHERE pg_has_role(session_user, oid, 'MEMBER') OR rolname = current_user)";
/// What a member of these does on the server, it does as the server's own superuser.
const SERVER_ROLES: &str = "'pg_execute_server_program', 'pg_write_server_files'";

/// A role that may change or delete what is append only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the role {role} {excess}, so nothing but its good will keeps events append only; run as a member of audit_writer only"
)]
pub struct ExcessRights {
    /// The login.
    pub role: String,
    /// What it is or may do, such as `is a superuser`.
    pub excess: String,
}

impl Session {
    /// What the session's role, or one that it may become, may do against append-only; `None`: nothing. Asks the
    /// catalogue only, so before the schema is made there is nothing either.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn excess_rights(&mut self) -> Result<Option<ExcessRights>, StoreError> {
        // Before 16 a role that may create roles may make itself a member of any that is no superuser.
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "WITH {TABLES}, {ROLES}, \
                  owners AS (SELECT relowner AS oid FROM tables \
                             UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'audit_events') \
             SELECT session_user::text AS role, \
                    CASE WHEN bool_or(r.rolsuper) THEN 'is a superuser' \
                         WHEN bool_or(r.rolname IN ({SERVER_ROLES})) THEN 'may write the server''s files' \
                         WHEN bool_or(r.oid IN (SELECT oid FROM owners)) THEN 'owns the schema audit_events or its tables' \
                         WHEN bool_or(r.rolcreaterole) AND current_setting('server_version_num')::integer < 160000 \
                         THEN 'may create roles, and so become the owner of audit_events' \
                    END AS excess \
               FROM roles AS r"
        )))
        .fetch_one(&mut self.connection)
        .await?;
        let role: String = row.try_get("role")?;
        if let Some(excess) = row.try_get("excess")? {
            return Ok(Some(ExcessRights { role, excess }));
        }
        // Dead letters: the relay's columns may change.
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "WITH {TABLES}, {ROLES}, \
                  found AS (SELECT DISTINCT p.privilege, t.relname::text AS name FROM roles AS r, tables AS t, \
                                   unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS p (privilege) \
                             WHERE has_table_privilege(r.oid, t.oid, p.privilege) \
                                OR p.privilege = 'UPDATE' AND t.relname <> 'dead_letters' \
                                   AND has_any_column_privilege(r.oid, t.oid, 'UPDATE')) \
             SELECT concat('may ', string_agg(DISTINCT privilege, ', '), ' on audit_events.', \
                           coalesce(min(name) FILTER (WHERE name = 'events'), min(name)), \
                           ' and ' || nullif(count(DISTINCT name) - 1, 0) || ' more tables') AS excess \
               FROM found HAVING count(*) > 0"
        )))
        .fetch_optional(&mut self.connection)
        .await?;
        row.map(|row| Ok(ExcessRights { role, excess: row.try_get("excess")? })).transpose()
    }

    /// # Errors
    /// [`StoreError::Misconfigured`] when there are some.
    pub(super) async fn refuse_excess_rights(&mut self) -> Result<(), StoreError> {
        match self.excess_rights().await? {
            Some(excess) => {
                Err(sqlx::Error::Configuration(format!("REQUIRE_LEAST_PRIVILEGE=true, but {excess}").into())
                    .into())
            }
            None => Ok(()),
        }
    }
}
