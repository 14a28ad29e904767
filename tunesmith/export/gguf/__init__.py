"""Writes a model or a LoRA adapter as GGUF for llama.cpp."""
