"""A world to demonstrate on: a hand-written intent ontology, titles in its terms, and people who act on them."""
