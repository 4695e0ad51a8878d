"""From runs to numbers with intervals, and the words that such a number may have."""
