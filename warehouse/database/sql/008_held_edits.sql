-- Edits that were taken out of a rejected night, and wait in the queue beside quarantined records.

-- What is done with them are rows of `quarantine_actions`, whose source is then `edits:LINEAGE` and record_id the edit_id.
CREATE TABLE held_edits (
    lineage       TEXT NOT NULL,
    edit_id       TEXT NOT NULL,                    -- in the rejected candidate of the whole night
    request_id    TEXT NOT NULL,
    night         TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,                    -- that candidate
    cause         TEXT NOT NULL,                    -- culprit | unexplored
    sentence      TEXT NOT NULL,
    broken        BIGINT NOT NULL,                  -- probes that are right without the edit and wrong with it
    probes        JSON NOT NULL,                    -- the first of them, as [kind, prompt]
    PRIMARY KEY (lineage, edit_id)
);
