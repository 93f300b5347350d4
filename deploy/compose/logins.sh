#!/bin/bash
# Run once, on the first start of the example's PostgreSQL, before its schema is made: two logins, and the roles that
# `audit-consumer migrate` grants rights to and would make itself. The image runs or sources it, as it likes.
set -e

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set=audit_password="$AUDIT_PASSWORD" --set=reader_password="$READER_PASSWORD" <<'SQL'
CREATE ROLE audit_writer NOLOGIN;
CREATE ROLE audit_admin NOLOGIN;
CREATE ROLE audit_events_read NOLOGIN;
CREATE ROLE audit LOGIN PASSWORD :'audit_password' IN ROLE audit_writer, audit_admin;
CREATE ROLE reader LOGIN PASSWORD :'reader_password' IN ROLE audit_events_read;
SQL
