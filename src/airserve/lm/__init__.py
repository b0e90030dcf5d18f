"""The project's own small language model: tokenizer, training examples, network, training, evaluation, export."""
