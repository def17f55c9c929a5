"""A few hundred attacks of each kind; `make attack` runs all of them."""

import pytest

from tests import attacks


def test_attacked_files_are_refused_in_time_and_in_words(tmp_path):
    bad, done, refused = attacks.attack_files(600, 0, tmp_path)
    assert bad == []
    assert done == 600 and refused > 500


# an interrupt at the exit of `with open` leaves the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(tmp_path, untyped):
    bad, done = attacks.attack_interrupts(tmp_path, cases=30)
    assert bad == []
    assert done > 1000


def test_two_threads_on_one_switch_leave_the_pretrained_model(tmp_path):
    bad, done = attacks.attack_threads(10, tmp_path)
    assert bad == []
    assert done == 10


def test_damaged_and_killed_checkpoints(tmp_path):
    bad, done = attacks.attack_checkpoints(400, 3, tmp_path)
    assert bad == []
    assert done > 400
