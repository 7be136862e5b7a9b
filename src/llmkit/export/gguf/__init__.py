"""A causal language model as a GGUF file, the format of llama.cpp, and its verification."""
