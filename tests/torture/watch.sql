-- The rig's own witness, in the database: which daemon claimed a position last, and each commit of a lane of another one.
-- It knows nothing of epochs. The daemons name themselves by a setting in their URLs.
CREATE SCHEMA torture;
CREATE TABLE torture.owners (
    stream_id uuid, partition integer, daemon text, claimed_at timestamptz, PRIMARY KEY (stream_id, partition)
);
CREATE TABLE torture.zombies (
    at timestamptz DEFAULT now(), stream_id uuid, partition integer, start_offset bigint, end_offset bigint,
    daemon text, owner text
);
CREATE FUNCTION torture.watch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    me text := current_setting('torture.daemon', true);
    owner text;
BEGIN
    IF NEW.claimed_at IS DISTINCT FROM OLD.claimed_at THEN
        INSERT INTO torture.owners VALUES (NEW.stream_id, NEW.partition, me, NEW.claimed_at)
        ON CONFLICT (stream_id, partition) DO UPDATE SET daemon = me, claimed_at = NEW.claimed_at;
    ELSIF NEW.next_offset <> OLD.next_offset AND current_setting('application_name') = 'audit-consumer/lane' THEN
        SELECT o.daemon INTO owner FROM torture.owners AS o
         WHERE o.stream_id = NEW.stream_id AND o.partition = NEW.partition;
        IF owner IS DISTINCT FROM me THEN
            INSERT INTO torture.zombies (stream_id, partition, start_offset, end_offset, daemon, owner)
            VALUES (NEW.stream_id, NEW.partition, OLD.next_offset, NEW.next_offset, me, owner);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER torture_watch AFTER UPDATE ON audit_events.consumer_offsets
    FOR EACH ROW EXECUTE FUNCTION torture.watch();
