-- A gap of which records turned up is closed, and what is left of it is declared again: so only one open gap begins
-- at an offset, and any number of closed ones. Works by `psql -f` and by `audit-consumer migrate`, again too.

ALTER TABLE audit_events.offset_gaps DROP CONSTRAINT IF EXISTS offset_gaps_stream_id_partition_start_offset_key;
CREATE UNIQUE INDEX IF NOT EXISTS offset_gaps_open ON audit_events.offset_gaps (stream_id, partition, start_offset)
 WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS offset_gaps_end ON audit_events.offset_gaps (stream_id, partition, end_offset);
COMMENT ON COLUMN audit_events.offset_gaps.closed_at IS
    'When records of it were stored after all; what is left of it is a gap of its own';
