"""What computes answers: the scheduler in this process with transformers or llama.cpp under it, and vLLM."""
