import math

import torch

from blowtorch.metrics import Window, means


def test_means_are_weighted_by_batch_size():
    window = Window()
    window.add({"loss": torch.tensor(1.0)}, weight=32)
    window.add({"loss": torch.tensor(4.0)}, weight=16)
    assert window.means() == {"loss": 2.0}


def test_numbers_and_tensors_and_different_names_go_together():
    window = Window()
    window.add({"loss": torch.tensor(1.0), "accuracy": 0.5}, weight=2)
    window.add({"loss": 3, "speed": torch.tensor(7)}, weight=2)
    assert window.means() == {"loss": 2.0, "accuracy": 0.5, "speed": 7.0}


def test_closing_empties_the_window_and_reading_does_not():
    window = Window()
    window.add({"loss": 1.0}, weight=1)
    assert window.means() == window.means() == {"loss": 1.0}
    assert window.close() == {"loss": (1.0, 1)}
    assert window.means() == {}


def test_a_window_cut_in_two_by_a_checkpoint_gives_the_same_bits():
    """Rounding depends on the order of a sum, so a restart must not change it."""
    torch.manual_seed(0)
    values = torch.randn(500)
    straight = Window()
    cut = Window()
    for number, value in enumerate(values):
        straight.add({"loss": value}, weight=32)
        cut.add({"loss": value}, weight=32)
        if number == 123:
            state = cut.state_dict()
            cut = Window()
            cut.load_state_dict(state)
    assert straight.means() == cut.means()


def test_values_on_an_accelerator_are_not_read_before_the_window_is():
    """The meta device cannot be read at all, so adding must not try."""
    window = Window()
    for _ in range(3000):
        window.add({"loss": torch.empty((), device="meta")}, weight=1)
    assert len(window._waiting) < 1024


def test_values_that_waited_are_summed_in_order_and_mixed_kinds_of_numbers_are_fine():
    window, direct = Window(), Window()
    torch.manual_seed(0)
    for value in torch.randn(2500):
        window._waiting.append(("loss", 3, value))
        if len(window._waiting) >= 1024:
            window._pack()
        direct.add({"loss": value}, weight=3)
    assert window.means() == direct.means()


def test_a_graph_is_not_kept_alive():
    window = Window()
    window.add({"loss": torch.ones((), requires_grad=True, device="meta") * 2}, weight=1)
    assert not window._waiting[0][2].requires_grad


def test_windows_merge_by_their_weights():
    epoch, window = Window(), Window()
    for value, weight in ((1.0, 1), (4.0, 2)):
        window.add({"loss": value}, weight=weight)
        epoch.merge(window.close())
    assert epoch.means() == {"loss": 3.0}


def test_a_mean_without_weight_is_not_a_number():
    assert math.isnan(means({"loss": (0.0, 0.0)})["loss"])
