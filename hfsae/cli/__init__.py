"""The `hfsae` command: verbs over the library, one recipe file, errors in one sentence.

main      one command: its verb, its errors, its exit code
table     the list of verbs, with the file of each
source    the options of a verb that measures any SAE, and writes results
files     the verbs of SAEs in files and repositories; `add_source` and `add_choice` name any SAE
recipes   a recipe from a file and the command line
show      what is printed of a folder
parsing   one kind of parser for all verbs
"""

from .main import main as main
