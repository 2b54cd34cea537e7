"""LLaMA from and to the files of Hugging Face transformers, without transformers and without PyTorch.

Input: a folder and a spec. Output: a checkpoint; or the reverse. This room imports the architecture
``llama``.
"""

from nt_models.huggingface.folder import load_llama, read_llama_config, save_llama

__all__ = ["load_llama", "read_llama_config", "save_llama"]
