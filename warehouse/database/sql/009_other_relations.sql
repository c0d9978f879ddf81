-- In which relations, beside its own, the warehouse had a value for a request's subject when the request was made.
ALTER TABLE edit_requests ADD COLUMN other_relations TEXT[] DEFAULT [];
