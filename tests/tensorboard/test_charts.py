import re

from lightning_stable.tensorboard import compared, comparison_charts, layout, projection_charts, window_chart


def test_patterns_match_their_tag_and_no_other() -> None:
    charts = projection_charts(["core.l0", "core.l0_reverse"]) | window_chart(["core"]) | comparison_charts("shadow")
    (page,) = layout(charts, "run+").values()
    assert page.keys() == charts.keys()
    tags = [f"run+{tag}" for tags in charts.values() for tag in tags]
    for title, (kind, patterns) in page.items():
        assert kind == "Multiline"
        # TensorBoard takes what re.match finds.
        found = [tag for tag in [*tags, *(f"{tag}/more" for tag in tags)] if any(re.match(p, tag) for p in patterns)]
        assert found == [f"run+{tag}" for tag in charts[title]]
    assert not any(re.match(p, "run+stability/coreXl0/rate") for _, patterns in page.values() for p in patterns)


def test_layers_without_recurrent_weights_have_no_empty_chart() -> None:
    assert list(projection_charts([]).values()) == [["stability/projection_distance"]]


def test_what_stands_beside_each_other() -> None:
    values = {"loss": 3.0, "loss_gap": 0.5, "weight_distance_relative": 0.1, "weight_distance": 7.0}
    model, twin, theory = compared(values, 0.25)
    assert model == {"loss": 2.5}
    assert twin == {"loss": 3.0, "weight_distance": 0.1}
    assert theory == {"weight_distance": 0.25}
    assert compared(values)[2] == {}


def test_without_a_loss_only_distances_are_compared() -> None:
    assert compared({"val_loss": 3.0}) == ({}, {}, {})
    assert compared({"prediction_distance_relative": 0.2}, 0.5) == (
        {},
        {"prediction_distance": 0.2},
        {"prediction_distance": 0.5},
    )
