-- The order of nights, as data: when each was received, and of those received together the natural order of their names.

CREATE TABLE nights (
    night       TEXT PRIMARY KEY,                   -- '' : the base world, before all of them
    place       BIGINT NOT NULL,                    -- 1, 2, 3, ... in order; 0: the base world
    received_at TIMESTAMPTZ                         -- NULL: received before places were kept
);

-- A night without a row comes after all that have one. The columns are renamed inside, or a column `night` of whoever
-- asks would be taken for this table's own.
CREATE MACRO place_of(asked) AS coalesce(
    (SELECT k.known_place FROM (SELECT night AS known_night, place AS known_place FROM nights) AS k WHERE k.known_night = asked),
    CASE WHEN asked IS NOT NULL THEN 9223372036854775807 END);

-- Homes from before: nights changed facts in the order of their names as text, and nothing else was possible. Between
-- them stand the nights that were judged and changed nothing, by the arrival of their records. Nights that are not
-- judged yet come last, so that none of them is stuck behind one that has changed facts.
INSERT INTO nights (night, place)
WITH arrived AS (
    SELECT night, min(received_seq) AS seq FROM updates GROUP BY night
), changed AS (
    SELECT known_from_night AS night FROM facts WHERE known_from_night <> ''
    UNION SELECT known_to_night FROM facts WHERE known_to_night IS NOT NULL
), named AS (
    SELECT night FROM arrived UNION SELECT night FROM changed UNION SELECT night FROM runs
    UNION SELECT night FROM verdicts UNION SELECT night FROM edit_requests
), known AS (
    SELECT n.night, a.seq, c.night IS NOT NULL AS has_changed,
           c.night IS NULL AND a.seq IS NOT NULL AND n.night NOT IN (SELECT night FROM verdicts) AS waits,
           (SELECT min(r.started_at) FROM runs AS r WHERE r.night = n.night) AS started_at
    FROM named AS n LEFT JOIN arrived AS a USING (night) LEFT JOIN changed AS c ON c.night = n.night
    WHERE n.night <> ''
), keyed AS (
    SELECT *, CASE WHEN has_changed THEN coalesce(max(seq) OVER (PARTITION BY has_changed ORDER BY night), 0) ELSE seq END AS arrival
    FROM known
)
SELECT night, row_number() OVER (
    ORDER BY waits, arrival NULLS LAST, has_changed DESC, CASE WHEN has_changed THEN night END, started_at NULLS LAST,
        list_transform(
            regexp_extract_all(lower(regexp_replace(night, '^[Nn]ight[-_ ]?([0-9])', '\1')), '[0-9]+|[^0-9]+'),
            lambda part: CASE WHEN regexp_matches(part, '^[0-9]')
                THEN concat('0', lpad(length(ltrim(part, '0'))::TEXT, 4, '0'), ltrim(part, '0')) ELSE concat('1', part) END
        ), night
) FROM keyed
UNION ALL SELECT '', 0;
