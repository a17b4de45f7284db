"""English words that say nothing by themselves: what a latent that fires on them means, nobody
sees in a text. Of other languages none are known here: all their words count as words of content.
"""

_CLOSED = """
a an the this that these those some any no every each either neither both all half several many
much few little more most other another such same own i me my mine myself you your yours yourself
yourselves he him his himself she her hers herself it its itself we us our ours ourselves they
them their theirs themselves one ones oneself who whom whose which what whatever whoever whichever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing
none am is are was were be been being have has had having do does did doing done will would shall
should can could may might must ought need dare let lets get gets got getting go goes went gone
going make makes made making take takes took taken come comes came about above across after
against along among amongst around as at before behind below beneath beside besides between beyond
but by concerning despite down during except for from in including inside into like near of off on
onto out outside over past per since than through throughout till to toward towards under
underneath until unto up upon via versus with within without and or nor so yet if because although
though while whereas unless whether lest once when whenever where wherever why how however not
never also too very quite rather almost nearly just only even still already again ever often
always sometimes usually seldom soon now then here there hence thus therefore otherwise moreover
furthermore nevertheless nonetheless meanwhile instead perhaps maybe indeed certainly simply
really actually well away back together apart especially particularly generally mainly mostly
partly largely first second third last next former latter previous following certain various
different said say says called known used use using based part united one two three four five six
seven eight nine ten eleven twelve hundred thousand million billion
"""
FUNCTION_WORDS = frozenset(_CLOSED.split())


def is_content(word: str) -> bool:
    """Whether a word, in any case, stands for something by itself."""
    return word.casefold() not in FUNCTION_WORDS


def content_word(token: str, shortest: int) -> str:
    """The word, in small letters, that a token with a blank before it spells; "" where it is a
    piece of a word, has fewer than `shortest` letters or says nothing by itself."""
    word = token.strip().casefold()
    is_word = token[:1].isspace() and word.isalpha() and len(word) >= shortest
    return word if is_word and is_content(word) else ""
