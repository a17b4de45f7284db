"""A judge that knows what planted names mean: it reads prompts alone, and answers by the words in
them."""

import json
import math
import re
from zlib import crc32

from hfsae.explanations.judges import Answer, Judge, Question, Usage

WORD = re.compile(r"(?<!\w)w\d+(?!\d)")


class Oracle(Judge):
    """It finds the words of a description in a text, by `knows(names, words, at)`."""

    name = "oracle"

    def __init__(self, has_probabilities: bool = True, knows=None) -> None:
        self.has_probabilities, self.usage = has_probabilities, Usage()
        self.knows = knows or (lambda names, words, at: words[at] in names)
        self.questions: list[Question] = []

    def answer(self, questions, progress=None):
        self.questions += questions
        answers = [self.one(question) for question in questions]
        if progress is not None:
            progress(len(answers), self.usage)
        return answers

    def hits(self, description: str, text: str) -> list[int]:
        names, words = {*WORD.findall(description)}, WORD.findall(text)
        return [at for at in range(len(words)) if self.knows(names, words, at)]

    def marked(self, description: str, text: str) -> bool:
        if "<<" not in text:
            return bool(self.hits(description, text))
        spans = re.findall("<<(.*?)>>", text)
        inside = [WORD.findall(span) for span in spans]
        names = {*WORD.findall(description)}
        return any(
            self.knows(names, WORD.findall(text), WORD.findall(text).index(word))
            for part in inside
            for word in part
        )

    def one(self, question: Question) -> Answer:
        system, text = question.messages[0][1], question.messages[-1][1]
        first, *texts = text.split("\n")
        if "intruder" in system:
            answer = self.odd([first, *texts])
            return Answer(answer, None, {n: -float(n != answer) for n in "12345"})
        if question.choices:
            p = 0.9 if self.marked(first, texts[0]) else 0.2
            return Answer("yes", None, {"yes": math.log(p), "no": math.log(1 - p)})
        if texts and texts[0].startswith("Tokens"):
            tokens = json.loads(texts[0].partition(": ")[2])
            at = {*self.hits(first, texts[0])}
            places = [i for i, token in enumerate(tokens) if WORD.search(token)]
            hits = {places[i] for i in at}
            return Answer(
                json.dumps({"activations": [10 * (i in hits) for i in range(len(tokens))]})
            )
        grades = [8 if self.marked(first, text) else 1 for text in texts]
        return Answer(json.dumps({"grades": grades}))

    def odd(self, texts: list[str]) -> str:
        """The number of the text that lacks a word that all the others have."""
        words = [{*WORD.findall(text)} for text in texts]
        for i in range(len(words)):
            others = [w for j, w in enumerate(words) if j != i]
            if set.intersection(*others) - words[i]:
                return str(i + 1)
        return "1"


def by_oracle(handler, body) -> None:
    """What a server sends that answers as the oracle does, and names latents by their question."""
    messages = tuple((m["role"], m["content"]) for m in body["messages"])
    if "Name in at most" in messages[0][1]:
        number = crc32(messages[-1][1].encode())
        text = json.dumps({"name": f"words such as w{number % 60} in lists, {number}", "sure": 7})
    else:
        text = Oracle(False).one(Question(messages)).text
    handler.complete(body, text)
