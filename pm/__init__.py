"""A preference model: one sequence holds a prompt and two responses, a linear head says which is better."""
