"""Which of a visit's runs goes on."""

from hfsae.demo.pages.page import Visit


def test_another_run_ends_the_one_before_and_not_one_of_another_kind():
    visit = Visit()
    visit.ask(kind="texts"), visit.ask(kind="strength")
    first, other = visit.begin("texts"), visit.begin("strength")
    visit.ask(7, kind="texts")
    assert first.over and not first.stopped and not other.over
    second = visit.begin("texts")
    first.over = True  # it comes to its end after the second has begun
    assert second.values == (7,) and not second.over
    visit.stop()
    assert second.over and second.stopped and other.stopped and not first.stopped


def test_a_run_begins_once_and_not_at_all_if_it_was_stopped_while_it_waited():
    visit = Visit()
    assert visit.begin("texts") is None
    visit.ask(kind="texts"), visit.ask(kind="texts")
    assert visit.begin("texts") is not None and visit.begin("texts") is None
    visit.ask(kind="texts"), visit.stop()
    assert visit.begin("texts") is None


def test_what_another_kind_takes_the_place_of_ends_without_a_word():
    visit = Visit()
    visit.ask(kind="strength")
    run = visit.begin("strength")
    visit.ask(kind="texts", instead_of="strength")
    assert run.over and not run.stopped
