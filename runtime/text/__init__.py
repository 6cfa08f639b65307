"""Text to token ids and back: tokenizer, chat template, grammar, ends of an answer."""
