-- The roles of audit-consumer, made by somebody who may create roles, for a database whose migrating role may not:
--   psql -d DATABASE -f roles.sql
-- Again too. Then `audit-consumer migrate` as a login that becomes audit_migrate, which so owns all that it makes:
--   CREATE ROLE deploy LOGIN PASSWORD '...' IN ROLE audit_migrate;
--   ALTER ROLE deploy SET role = 'audit_migrate';
\set ON_ERROR_STOP on

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['audit_migrate', 'audit_writer', 'audit_admin', 'audit_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END $$;

-- In schema public stands the table of the migrations that were applied.
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE :"DBNAME" TO audit_migrate;
-- What may be a duplicate goes through a temporary table, and so does what `verify` and `import` compare.
GRANT TEMPORARY ON DATABASE :"DBNAME" TO audit_writer, audit_admin, audit_reader;
GRANT USAGE, CREATE ON SCHEMA public TO audit_migrate;
