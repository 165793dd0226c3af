"""What is told: gates and their verdicts, the report and its tables, and the pictures."""
