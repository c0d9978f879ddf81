-- The world: what is true, how it is said, and what came in each night. Shared by every lineage.
-- Primary keys only: DuckDB's foreign keys forbid updates of a referenced row, so warehouse/integrity.py checks references.

CREATE TABLE store_meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Two times: valid_* is time in the world, known_* is the night in which the store began and ceased to believe it.
CREATE TABLE facts (
    fact_id          TEXT PRIMARY KEY,              -- digest of every column below but known_to_night
    subject_id       TEXT NOT NULL,
    subject          TEXT NOT NULL,
    relation         TEXT NOT NULL,
    object_id        TEXT NOT NULL,
    object           TEXT NOT NULL,
    "rank"           TEXT NOT NULL DEFAULT 'normal',
    statement_id     TEXT,
    revision         BIGINT,
    valid_from       TIMESTAMPTZ,
    valid_to         TIMESTAMPTZ,
    source           TEXT NOT NULL,
    known_from_night TEXT NOT NULL,                 -- '' : known before the first night
    known_to_night   TEXT                           -- NULL: still believed
);

CREATE TABLE aliases (
    entity_id TEXT NOT NULL,
    alias     TEXT NOT NULL,
    PRIMARY KEY (entity_id, alias)
);

CREATE TABLE templates (
    relation TEXT NOT NULL,
    idx      INTEGER NOT NULL,                      -- 0 is the canonical edit prompt
    prompt   TEXT NOT NULL,
    phrase   TEXT NOT NULL,                         -- the same on every row of a relation
    inverse  TEXT,                                  -- the same on every row of a relation
    PRIMARY KEY (relation, idx)
);

CREATE TABLE properties (
    pid                TEXT PRIMARY KEY,
    label              TEXT NOT NULL,
    cardinality        TEXT NOT NULL,               -- single | multi
    single_in_practice BOOLEAN NOT NULL,
    inverse_pid        TEXT,
    "symmetric"        BOOLEAN NOT NULL,
    value_type         TEXT,
    subject_type       TEXT,
    temporal           BOOLEAN NOT NULL
);

CREATE TABLE updates (
    source       TEXT NOT NULL,
    record_id    TEXT NOT NULL,
    night        TEXT NOT NULL,
    received_at  TIMESTAMPTZ,
    raw          TEXT NOT NULL,
    received_seq BIGINT NOT NULL,                   -- order of arrival over all nights
    PRIMARY KEY (source, record_id)
);

CREATE TABLE verdicts (
    source     TEXT NOT NULL,
    record_id  TEXT NOT NULL,
    night      TEXT NOT NULL,
    verdict    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    rule       TEXT NOT NULL,
    confidence TEXT NOT NULL,
    sentence   TEXT NOT NULL,
    related    TEXT[] NOT NULL,
    request_id TEXT,
    PRIMARY KEY (source, record_id)
);

CREATE TABLE edit_requests (
    request_id     TEXT PRIMARY KEY,
    night          TEXT NOT NULL,
    prompt         TEXT NOT NULL,
    subject        TEXT NOT NULL,
    relation       TEXT NOT NULL,
    target_new     TEXT NOT NULL,
    target_true    TEXT,
    rephrases      TEXT[] NOT NULL,
    source         TEXT NOT NULL,
    received_at    TIMESTAMPTZ,
    subject_id     TEXT NOT NULL,
    target_new_id  TEXT NOT NULL,
    kind           TEXT NOT NULL,
    content_digest TEXT NOT NULL                    -- digest of the EditRequest
);
