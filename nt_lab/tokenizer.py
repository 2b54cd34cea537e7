"""The public path of tokenizers, for text that is encoded outside a training."""

from nt_lab.data.tokenizer import Tokenizer, open_tokenizer

__all__ = ["Tokenizer", "open_tokenizer"]
