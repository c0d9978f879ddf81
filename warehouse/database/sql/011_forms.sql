-- Ways of asking: what a request is edited and asked with beside its prompt and rephrases, and what a model knows how.

ALTER TABLE edit_requests ADD COLUMN also TEXT[] DEFAULT [];
ALTER TABLE edit_requests ADD COLUMN wordings TEXT[] DEFAULT [];
ALTER TABLE edit_requests ADD COLUMN carry_over TEXT[] DEFAULT [];

-- One row for each fact and form that a base model was asked for.
CREATE TABLE known_facts (
    model_digest TEXT NOT NULL,                     -- of the base
    subject_id   TEXT NOT NULL,
    relation     TEXT NOT NULL,
    form         TEXT NOT NULL,
    correct      BOOLEAN NOT NULL,                  -- greedy answer equal to one of the fact's objects
    PRIMARY KEY (model_digest, subject_id, relation, form)
);
