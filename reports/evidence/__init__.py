"""What may enter a claim: finished runs, their clocks and cells, from records or from tables of other people."""
