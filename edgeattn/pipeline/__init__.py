"""What a command calls, each under the command's own name; the steps of convert stand in steps/."""
