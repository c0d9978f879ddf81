-- Entity documents: what was set aside and why, and which properties came that no template states.

CREATE TABLE set_aside (
    source    TEXT NOT NULL,
    place     TEXT NOT NULL,                        -- line of a dump, or statement id
    reason    TEXT NOT NULL,
    night     TEXT NOT NULL,
    entity_id TEXT NOT NULL,                        -- '' where it is not known
    sentence  TEXT NOT NULL,
    raw       TEXT NOT NULL DEFAULT '',             -- the beginning of what was received
    PRIMARY KEY (source, place, reason)
);

CREATE TABLE unstated_properties (
    source     TEXT NOT NULL,
    night      TEXT NOT NULL,
    pid        TEXT NOT NULL,
    label      TEXT NOT NULL,                       -- '' where no document said it
    statements BIGINT NOT NULL,
    PRIMARY KEY (source, night, pid)
);
