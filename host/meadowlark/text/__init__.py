"""Text and tokens: tokenizers, chat templates, what ends an answer."""
