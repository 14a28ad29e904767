"""Prompts in, tokens out: the scheduler in this process over Transformers or llama.cpp, and vLLM."""
