"""Which of a session's runs goes on."""

from hfsae.demo.runs import Runs


def test_another_run_ends_the_one_before_and_not_anothers():
    runs = Runs()
    runs.ask("a"), runs.ask("b")
    first, other = runs.begin("a"), runs.begin("b")
    runs.ask("a")
    assert first.over and not first.stopped and not other.over
    second = runs.begin("a")
    runs.end("a", first)  # the first comes to its end after the second has begun
    runs.stop("a")
    assert second.over and second.stopped


def test_a_run_begins_once_and_not_at_all_if_it_was_stopped_while_it_waited():
    runs = Runs()
    assert runs.begin("a") is None
    runs.ask("a"), runs.ask("a")
    assert runs.begin("a") is not None and runs.begin("a") is None
    runs.ask("a"), runs.stop("a")
    assert runs.begin("a") is None


def test_nothing_is_kept_of_a_run_that_ended():
    runs = Runs()
    runs.ask("a")
    runs.end("a", runs.begin("a"))
    assert not runs._last and not runs._waiting
