"""MODEL as a local Hugging Face directory."""
