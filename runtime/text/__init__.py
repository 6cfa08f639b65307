"""Text layer: tokenizer, chat template, tools, grammars, and the end of an answer."""
