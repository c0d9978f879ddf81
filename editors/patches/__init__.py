"""What an edit leaves behind: weight updates, added modules, memories, prompts; saved as safetensors and JSON."""
