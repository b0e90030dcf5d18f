"""The atomic intent table: vocabulary, embeddings, file format, publishing and lookup."""
