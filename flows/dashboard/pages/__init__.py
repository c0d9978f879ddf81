"""The pages: each module asks the warehouse's named queries and says what its template shows."""
