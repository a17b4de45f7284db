"""Files, their names, memory, locks, processors, keys, guards, the Hub's client: what the rest stands on."""
