"""The registry: what is found, and what a wrong name or setting is told."""

import pytest

import baselines
from ibsgl import attribution


def test_all_methods_are_registered():
    assert set(attribution.names()) >= {
        *(
            "gradcam",
            "gradcam_pp",
            "score_cam",
            "rise",
            "extremal_perturbation",
            "integrated_gradients",
            "fullgrad",
            "sise",
        ),
        *("gradient", "bottleneck", "center", "random", "oracle"),
    }


def test_the_package_is_ours():
    """The index of packages has another one called baselines."""
    assert type(attribution.get("rise")).__module__ == "baselines.rise"
    assert "competitors" in baselines.__doc__


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("rises", {}, "no saliency method 'rises'; registered are bottleneck, captum, center"),
        ("rise", {"mask": 1}, "method 'rise' has no setting 'mask'; its settings: masks"),
        ("rise", {"masks": "many"}, "masks: "),
        ("gradcam", {"layer": 4}, "its settings: none"),
        ("bottleneck", {"reduction": "median"}, "reduction"),
        ("bottleneck", {"steps": 0}, "steps"),
    ],
)
def test_mistakes_are_named(name, params, message):
    with pytest.raises(ValueError, match=r"settings|masks|method|reduction|steps") as error:
        attribution.get(name, **params)
    assert message in str(error.value)


def test_module_of_does_not_import():
    assert attribution.module_of("rise") == "baselines.rise"
