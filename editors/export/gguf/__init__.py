"""Write a plain Hugging Face folder as one `.gguf` file, which llama.cpp and what is built on it (Ollama, LM Studio) serve."""
