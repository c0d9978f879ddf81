-- What a person did with quarantined records, and what a property allows beyond one row of `properties`.

-- Append-only: rows are never changed or deleted, and each digest covers the one before it, so a gap shows.
-- The key lets every record be released, rejected and joined once; a joined record stands under a new record_id.
CREATE TABLE quarantine_actions (
    seq          BIGINT NOT NULL,                   -- 1, 2, 3 ... over all sources
    source       TEXT NOT NULL,
    record_id    TEXT NOT NULL,                     -- the quarantined record
    action       TEXT NOT NULL,                     -- release | reject | join
    rule         TEXT NOT NULL,                     -- the rule that had quarantined it; the only one a release waives
    reason       TEXT NOT NULL,                     -- why, in the words of whoever acted
    actor        TEXT NOT NULL,
    acted_at     TIMESTAMPTZ NOT NULL,
    joined_night TEXT,                              -- of a join: the night that judges it again
    joined_as    TEXT,                              -- of a join: its record_id there
    digest       TEXT NOT NULL,
    PRIMARY KEY (source, record_id, action)
);

-- Constraint "one of": the only values that a property may have. No row: any value.
CREATE TABLE property_values (
    pid       TEXT NOT NULL,
    object_id TEXT NOT NULL,
    PRIMARY KEY (pid, object_id)
);
