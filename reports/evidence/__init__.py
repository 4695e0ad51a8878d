"""What may enter a claim: finished runs with their clocks, from records or from other people's tables."""
