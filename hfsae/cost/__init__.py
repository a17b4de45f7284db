"""What a run costs before it is begun: seconds, bytes, on this machine or on a card elsewhere.

plan        seconds and memory by stage, for --dry_run
footprint   bytes
pace        seconds, measured on this machine
formula     seconds, by formula, on a GPU that is not here
"""
