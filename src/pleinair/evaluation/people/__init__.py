"""What people prefer: blind trials between results of the suite `exploration`, their answers, and what these say."""
