"""The network and its loss, on one device or in shards over several ranks."""
