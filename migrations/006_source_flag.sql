-- Events that name a federated source which is not registered, or disabled. Works by `psql -f` and by
-- `audit-consumer migrate`, again too.
--
-- The daemon decides by the registry as it knows it when it stores the event (read with every claim and every 30 s);
-- what becomes of the source later changes no row. Empty in rows from before this migration. The registry has
-- `local`, the source of events that name none, since 001.

ALTER TABLE audit_events.events ADD COLUMN IF NOT EXISTS source_flag text;
COMMENT ON COLUMN audit_events.events.source_flag IS
    'NULL: the registry had the source, enabled, when the event was stored; else unregistered or disabled';

-- NOT VALID, as every row that is there holds NULL: to look at them all would keep writers out for as long.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'audit_events.events'::regclass
                                              AND conname = 'events_source_flag_check') THEN
        ALTER TABLE audit_events.events ADD CONSTRAINT events_source_flag_check
            CHECK (source_flag IN ('unregistered', 'disabled')) NOT VALID;
    END IF;
END $$;
