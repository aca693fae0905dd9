"""The machines of a training run: starting ranks, watching them, and what their failures cost."""
