-- The ledger of each lineage: what was applied to the model, in which patch, and which checkpoint came of it.

CREATE TABLE patches (
    patch_digest TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,                     -- weight | module | memory | prompt
    editor       TEXT NOT NULL,
    bytes        BIGINT NOT NULL,
    meta         JSON NOT NULL
);

CREATE TABLE batches (
    lineage     TEXT NOT NULL,
    batch_id    TEXT NOT NULL,
    night       TEXT NOT NULL,
    editor      TEXT NOT NULL,
    request_ids TEXT[] NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (lineage, batch_id)
);

-- Two lineages with one editor and one base make the same patch, hence the same edit_id: the lineage is in the key.
CREATE TABLE edits (
    lineage       TEXT NOT NULL,
    edit_id       TEXT NOT NULL,
    request_id    TEXT NOT NULL,
    batch_id      TEXT NOT NULL,
    editor        TEXT NOT NULL,
    config_digest TEXT NOT NULL,
    patch_digest  TEXT NOT NULL,                    -- '' where the status is 'skipped': no patch was made
    applied_at    TIMESTAMPTZ NOT NULL,
    night         TEXT NOT NULL,
    checkpoint_id TEXT,                             -- the candidate or checkpoint that holds the patch
    status        TEXT NOT NULL,                    -- active | superseded | rejected | skipped
    reason        TEXT NOT NULL DEFAULT '',
    superseded_in TEXT,                             -- checkpoint that took it out of force; undone if that one is rolled back
    edit_seq      BIGINT NOT NULL,                  -- order of recording within the lineage
    PRIMARY KEY (lineage, edit_id)
);

CREATE TABLE checkpoints (
    lineage         TEXT NOT NULL,
    checkpoint_id   TEXT NOT NULL,
    parent          TEXT,
    base_model      TEXT NOT NULL,
    base_revision   TEXT NOT NULL,
    base_digest     TEXT NOT NULL,
    patch_digests   TEXT[] NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    night           TEXT NOT NULL,
    verdict         TEXT NOT NULL,                  -- promote | reject | hold
    manifest_digest TEXT,
    PRIMARY KEY (lineage, checkpoint_id)
);

-- Append-only: the newest row of a lineage is its head, so a rollback is one more row and nothing is forgotten.
CREATE TABLE heads (
    lineage       TEXT NOT NULL,
    seq           BIGINT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    moved_at      TIMESTAMPTZ NOT NULL,
    reason        TEXT NOT NULL,
    PRIMARY KEY (lineage, seq)
);

CREATE TABLE runs (
    night         TEXT NOT NULL,
    lineage       TEXT NOT NULL,
    run_id        TEXT NOT NULL,
    editor        TEXT NOT NULL,
    state         TEXT NOT NULL,                    -- received, validated, edited, evaluated, decided, published
    started_at    TIMESTAMPTZ NOT NULL,
    finished_at   TIMESTAMPTZ,
    seconds       DOUBLE NOT NULL DEFAULT 0,
    records       BIGINT NOT NULL DEFAULT 0,
    accepted      BIGINT NOT NULL DEFAULT 0,
    edited        BIGINT NOT NULL DEFAULT 0,
    scores        JSON NOT NULL,
    verdict       TEXT NOT NULL,
    checkpoint_id TEXT,
    details       JSON NOT NULL,
    PRIMARY KEY (night, lineage)
);
