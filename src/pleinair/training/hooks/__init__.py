"""What watches a run, one concern per file; `cli` chooses and orders them."""
