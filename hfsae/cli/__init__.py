"""The `hfsae` command: verbs over the library, one recipe file, errors in one sentence.

main      one command: its verb, its errors, its exit code
table     the list of verbs
runs      the verbs of training and measuring
files     the verbs of SAEs in files and repositories
app       the verbs of the app
explain   the verb that explains latents
probe     the verb that probes SAEs
study     the verbs of ratings by people
source    the options of every verb that takes any SAE
recipes   a recipe from a file and the command line
show      what is printed of a folder
parsing   one kind of parser for all verbs
"""

from .main import main as main
