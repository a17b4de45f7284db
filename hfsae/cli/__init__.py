"""The `hfsae` command: verbs over the library, one recipe file, errors in one sentence.

verbs     the verbs of training and measuring, and the table of all verbs
files     the verbs of SAEs in files and repositories
app       the verbs of the app
recipes   a recipe from a file and the command line
show      what is printed of a folder
parsing   one kind of parser for all verbs
"""

from .verbs import main as main
