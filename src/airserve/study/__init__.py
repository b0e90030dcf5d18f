"""The ranker's quality on a behaviour log: models, cached runs, the protocol, statistics and the report."""
