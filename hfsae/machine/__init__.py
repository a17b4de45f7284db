"""Files, names, memory, locks, processors, keys, guards, the Hub's client: what all else needs."""
