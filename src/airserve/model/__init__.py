"""The ranking network: intent tree, target-aware retrieval, composition, sequence tower, ranker."""
