"""The examples of tasks, in small: each reaches its figure of merit."""

import pytest


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("regression", {"count": 600, "epochs": 5}, 0.9),
        ("multi_label", {"count": 1000, "epochs": 5}, 0.7),
        ("segmentation", {"count": 96, "epochs": 8}, 0.45),
        ("signals", {"count": 600, "epochs": 3}, 0.8),
    ],
)
def test_a_task_is_learned(load_example, name, options, least):
    assert least < load_example(name).main(**options) <= 1


def test_a_frozen_trunk_helps_where_examples_are_few(load_example):
    tuned, scratch = load_example("fine_tuning").main()
    assert tuned > scratch + 0.05


def test_an_own_network_comes_back_from_its_file(load_example, tmp_path):
    assert load_example("own_network").main(tmp_path, epochs=2) > 0.8


def test_a_search_answers_what_the_report_asks_next(load_example, tmp_path, capsys):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    found = load_example("search").run(tmp_path / "x", dataset="digits", trials=3, epochs=2)
    assert found.best.test_accuracy > 0.3
    assert (tmp_path / "x" / "search.png").exists()
    assert f"best of all, test accuracy {found.best.test_accuracy:.2%}: trial " in capsys.readouterr().out


def test_data_larger_than_memory(load_example, tmp_path):
    mapped, drawn = load_example("large_data").main(tmp_path, count=600, epochs=3)
    assert mapped == drawn > 0.9
