-- What operators do to dead letters, and breakers. Works by `psql -f` and by `audit-consumer migrate`, again too.
--
-- A dead letter's row never changes but for the relay's columns; what is done to it stands here, append only, and
-- dead_letter_states says what follows. A redrive is intended before its Kafka transaction begins and settled after
-- its outcome is known, so one that was interrupted is found and settled by the next.
--
-- Advisory locks: hashtextextended('audit-consumer/relay/' || group_id, 0), by the one relay of a group;
-- hashtextextended('audit-consumer/redrive', 0), by a redrive or discard.

CREATE TABLE IF NOT EXISTS audit_events.dead_letter_actions (
    action_id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id        uuid        NOT NULL,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    action           text        NOT NULL
        CHECK (action IN ('redrive_intended', 'redriven', 'redrive_dropped', 'discarded')),
    redrive_id       uuid,
    actor            text        NOT NULL,
    reason           text        NOT NULL,
    details          jsonb       NOT NULL DEFAULT '{}',
    at               timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (stream_id, source_partition, source_offset) REFERENCES audit_events.dead_letters,
    CHECK ((action = 'discarded') = (redrive_id IS NULL))
);
COMMENT ON TABLE audit_events.dead_letter_actions IS
    'What was done to dead letters by hand: who, when, why; the latest of a dead letter counts';
COMMENT ON COLUMN audit_events.dead_letter_actions.redrive_id IS
    'One Kafka transaction back to the source topic; the header dlq.redrive of its records';
CREATE INDEX IF NOT EXISTS dead_letter_actions_latest
    ON audit_events.dead_letter_actions (stream_id, source_partition, source_offset, action_id DESC);
CREATE INDEX IF NOT EXISTS dead_letter_actions_redrive ON audit_events.dead_letter_actions (redrive_id);
-- Nothing is redriven and discarded, and nothing is redriven twice.
CREATE UNIQUE INDEX IF NOT EXISTS dead_letter_actions_final
    ON audit_events.dead_letter_actions (stream_id, source_partition, source_offset)
    WHERE action IN ('redriven', 'discarded');

CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_id ON audit_events.dead_letters (dead_letter_id);

CREATE OR REPLACE VIEW audit_events.dead_letter_states AS
SELECT d.dead_letter_id, d.stream_id, d.source_partition, d.source_offset, d.group_id, d.topic, d.reason,
       d.created_at, d.relayed_at, a.actor, a.reason AS action_reason, a.at AS action_at,
       CASE WHEN a.action = 'discarded' THEN 'discarded'
            WHEN a.action = 'redriven' THEN 'redriven'
            WHEN a.action = 'redrive_intended' THEN 'redriving'
            WHEN d.relayed_at IS NOT NULL THEN 'relayed'
            ELSE 'waiting' END AS state
  FROM audit_events.dead_letters AS d
  LEFT JOIN LATERAL (
       SELECT l.action, l.actor, l.reason, l.at FROM audit_events.dead_letter_actions AS l
        WHERE l.stream_id = d.stream_id AND l.source_partition = d.source_partition
          AND l.source_offset = d.source_offset
        ORDER BY l.action_id DESC LIMIT 1) AS a ON true;
COMMENT ON VIEW audit_events.dead_letter_states IS
    'waiting: not in the dead letter topic yet; relayed: there; redriving, redriven, discarded: by an operator';

-- Breakers are recorded beside the other things that stop or move a position.
ALTER TABLE audit_events.offset_actions DROP CONSTRAINT IF EXISTS offset_actions_action_check;
ALTER TABLE audit_events.offset_actions ADD CONSTRAINT offset_actions_action_check CHECK (
    action IN ('adopt', 'adopt_from_group', 'declare_gap', 'fill_gap', 'open_breaker', 'resume'));
CREATE INDEX IF NOT EXISTS offset_actions_partition
    ON audit_events.offset_actions (group_id, stream_id, partition, action_id DESC);

DO $$
BEGIN
    PERFORM audit_events.protect('audit_events.dead_letter_actions'::regclass);
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_write') THEN
        GRANT SELECT ON audit_events.dead_letter_actions, audit_events.dead_letter_states TO audit_events_write;
        GRANT INSERT ON audit_events.dead_letter_actions TO audit_events_write;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'audit_events_read') THEN
        GRANT SELECT ON audit_events.dead_letter_actions, audit_events.dead_letter_states TO audit_events_read;
    END IF;
END $$;
