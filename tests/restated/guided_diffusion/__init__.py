"""What the tests need of OpenAI's guided-diffusion, restated: its names, keys and arithmetic."""
