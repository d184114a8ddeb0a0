"""Random bytes for every parser that reads what a stranger or a peer sent."""
