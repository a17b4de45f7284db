"""The cost of a run in seconds and bytes, on this machine or on a named card.

plan        seconds and memory by stage, for --dry_run
footprint   bytes
shortage    where there are too few of them
pace        seconds, measured on this machine
cards       figures of GPUs
formula     seconds, by formula, on a GPU that is not here
"""
