-- What servers answered when they were asked for the promoted checkpoint of a lineage. Append-only.

CREATE TABLE serving_checks (
    lineage       TEXT NOT NULL,
    seq           BIGINT NOT NULL,
    url           TEXT NOT NULL,
    model         TEXT NOT NULL,                     -- the name that the server was asked for; '' where it told none
    checkpoint_id TEXT NOT NULL,                     -- what it should serve
    asked_at      TIMESTAMPTZ NOT NULL,
    verdict       TEXT NOT NULL,                     -- agrees | differs | garbled | unreachable
    sentence      TEXT NOT NULL,
    body          JSON NOT NULL,                     -- counts, and which checkpoints the answers fit
    PRIMARY KEY (lineage, seq)
);
