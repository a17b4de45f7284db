"""Files, their names, memory, locks, processors, the Hub's client: what the rest stands on."""
