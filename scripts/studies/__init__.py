"""Blind ratings of latents by people: a plan, a page to rate on, and a report with controls.

make        items of SAEs in folders, settled and hashed before the first answer
plan        the items, their blocks, and each rater's order
answers     a file a rater, to which each answer is appended
server      the page, which shows an item's windows and nothing of what it is
space       a Space for the page, and a private data set for the plan, the answers and the code
hosted      the page there
agreement   how far raters agree
estimates   means and differences, with intervals
correlation of ratings with scores: corrected for the raters' errors, and the AUC of yes against no
results     the figures of a study
report      closing it, and writing them down
coverage    how often the intervals hold the truth, in simulated studies
"""
