"""One forward pass of any torch module: watched, changed under way, and everything put back afterwards."""
