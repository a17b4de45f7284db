"""Files, memory, processors, locks and the Hub's client: what the rest stands on."""
