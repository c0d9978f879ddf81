-- Every event that changed what is served or why: a chain in which each entry holds the digest of the one before.

CREATE TABLE audit (
    seq      BIGINT PRIMARY KEY,                    -- 1, 2, 3, ... without gap
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,                         -- what it is about: a night, a checkpoint, a record, a key
    lineage  TEXT NOT NULL,                         -- empty where it concerns all of them
    actor    TEXT NOT NULL,
    reason   TEXT NOT NULL,
    noted_at TIMESTAMPTZ NOT NULL,
    payload  JSON NOT NULL,
    previous TEXT NOT NULL,
    digest   TEXT NOT NULL UNIQUE
);
