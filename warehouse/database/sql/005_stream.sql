-- The live source: where the stream was left, what came over it, what became of it, and the base of the next diff.

-- Written in the same transaction as the events before it, so a killed client goes on exactly where it was.
CREATE TABLE stream_cursors (
    stream        TEXT PRIMARY KEY,                 -- address of the stream
    last_event_id TEXT NOT NULL,                    -- opaque; sent back as it came
    recent        JSON NOT NULL,                    -- keys of the last events, against redelivery of what is not stored
    frames        BIGINT NOT NULL,                  -- frames counted so far, redelivered ones left out
    updated_at    TIMESTAMPTZ NOT NULL
);

-- Each admitted event once. Nothing about persons beyond Wikidata's public editor class.
CREATE TABLE stream_events (
    event_key    TEXT PRIMARY KEY,                  -- meta.id
    stream       TEXT NOT NULL,
    night        TEXT NOT NULL,
    seq          BIGINT NOT NULL,                   -- order of arrival
    wiki         TEXT NOT NULL,
    entity_id    TEXT NOT NULL,
    action       TEXT NOT NULL,                     -- fetch_and_diff | tombstone
    why          TEXT NOT NULL,
    rev_old      BIGINT,
    rev_new      BIGINT,
    happened_at  TIMESTAMPTZ,
    editor_class TEXT NOT NULL,
    patrolled    BOOLEAN NOT NULL,
    summary      TEXT NOT NULL                      -- the machine's part, without user text
);

-- What became of an event; an event without a row here waits for its documents.
CREATE TABLE stream_outcomes (
    event_key TEXT PRIMARY KEY,
    outcome   TEXT NOT NULL,                        -- changed | unchanged | set_aside
    reason    TEXT NOT NULL,
    records   BIGINT NOT NULL
);

-- Data that is no event, cut to a limit; rows beyond a number of each reason are only counted.
CREATE TABLE stream_refused (
    refusal_id TEXT PRIMARY KEY,                    -- digest of event id and data
    stream     TEXT NOT NULL,
    night      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    sentence   TEXT NOT NULL,
    payload    TEXT NOT NULL,
    chars      BIGINT NOT NULL
);

-- How many of what: events by action and reason, refusals, changes of properties that are not wanted.
CREATE TABLE stream_counts (
    stream TEXT NOT NULL,
    night  TEXT NOT NULL,
    kind   TEXT NOT NULL,                           -- event | refused | property
    reason TEXT NOT NULL,
    num    BIGINT NOT NULL,
    PRIMARY KEY (stream, night, kind, reason)
);

-- The last known statements of each item: the base of the next diff.
CREATE TABLE entity_states (
    entity_id TEXT NOT NULL,
    revision  BIGINT NOT NULL,
    body      JSON NOT NULL,                        -- warehouse/sources/entity_model.py: Entity
    night     TEXT NOT NULL,
    PRIMARY KEY (entity_id, revision)
);

CREATE TABLE entity_redirects (
    from_id TEXT PRIMARY KEY,
    to_id   TEXT NOT NULL,
    night   TEXT NOT NULL
);

CREATE TABLE entity_labels (
    entity_id TEXT PRIMARY KEY,
    label     TEXT NOT NULL                         -- '' : it has no English label
);
