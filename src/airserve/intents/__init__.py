"""Atomic intents: prompt, answer schema, generation and what is kept of it."""
