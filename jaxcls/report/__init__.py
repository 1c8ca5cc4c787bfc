"""What a run writes and shows: metrics, the terminal, timings. Knows only dicts and numbers."""
