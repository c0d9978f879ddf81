"""The ground: records, the database, the checkpoint store and the sources of updates. No tensor, none of our packages."""
