"""Post-training as a chain: what follows a base model, link by link."""
