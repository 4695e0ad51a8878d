"""Everything worth knowing about a device within the minutes that one command may take: `python -m trainers.bench.tour`."""
