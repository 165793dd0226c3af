"""Is it still right: parity with the source, the task's metric, and the data that both are measured on. numpy only."""
