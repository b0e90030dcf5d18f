"""Items and behaviours: their schemas, reading with checks, and importers of other formats."""
