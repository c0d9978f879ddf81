-- What was asked, what was answered, what was measured, and what was decided on it.

CREATE TABLE probe_sets (
    digest     TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE probes (
    set_digest TEXT NOT NULL,
    probe_id   TEXT NOT NULL,
    kind       TEXT NOT NULL,
    prompt     TEXT NOT NULL,
    targets    TEXT[] NOT NULL,
    request_id TEXT,
    PRIMARY KEY (set_digest, probe_id)
);

CREATE TABLE predictions (
    model_digest   TEXT NOT NULL,
    probe_id       TEXT NOT NULL,
    exact          BOOLEAN NOT NULL,
    token_accuracy DOUBLE NOT NULL,
    log_prob       DOUBLE NOT NULL,
    text           TEXT NOT NULL,
    PRIMARY KEY (model_digest, probe_id)
);

CREATE TABLE reports (
    report_id        TEXT PRIMARY KEY,
    before           TEXT NOT NULL,                 -- checkpoint ids
    after            TEXT NOT NULL,
    probe_set_digest TEXT NOT NULL,
    environment      JSON NOT NULL
);

CREATE TABLE scores (
    report_id TEXT NOT NULL,
    metric    TEXT NOT NULL,
    slice     TEXT NOT NULL,
    value     DOUBLE,                               -- NULL: nothing could be measured
    low       DOUBLE,
    high      DOUBLE,
    n         BIGINT NOT NULL,
    position  INTEGER NOT NULL,                     -- order within the report
    PRIMARY KEY (report_id, metric, slice)
);

CREATE TABLE policies (
    policy_digest TEXT PRIMARY KEY,                 -- digest of the GatePolicy
    name          TEXT NOT NULL,
    version       INTEGER NOT NULL,
    body          JSON NOT NULL
);

CREATE TABLE decisions (
    decision_id   TEXT PRIMARY KEY,
    report_id     TEXT NOT NULL,
    policy_digest TEXT NOT NULL,
    verdict       TEXT NOT NULL,
    results       JSON NOT NULL,
    decided_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE benchmarks (
    bench_id   TEXT PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL,
    "case"     TEXT NOT NULL,
    editor     TEXT NOT NULL,
    mode       TEXT NOT NULL,
    metrics    JSON NOT NULL
);
