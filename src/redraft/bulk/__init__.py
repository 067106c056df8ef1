"""Generation for every row of a data set: in shards, resumable, on one machine or spread with Ray."""
