"""A bad input is a short message and an exit status other than 0; nothing that was there is changed."""

import pytest

from tests.bad_inputs.called import PAGE, call, make_base, page, row
from tests.bad_inputs.cases import CASES, KINDS

ROWS = {}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("bad") / "base")


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.kind}: {case.what}" for case in CASES])
def test_it_is_said_and_nothing_is_lost(base, tmp_path, number):
    case = CASES[number]
    status, lines, before, after = call(case, base, tmp_path / "case")
    said = "\n".join(lines)
    assert status not in (0, None)
    assert case.said in said
    if case.kind.startswith("config"):
        assert said.startswith(f"ibsgl: error: {case.said}")
    # A data set may have several errors, each with a line of its own.
    assert len(lines) == 1 or (case.kind == "data" and lines[0].endswith("in the data set")), said
    assert "Traceback" not in said
    assert before.items() <= after.items()
    # The lock of a download stays.
    assert {path.suffix for path in after.keys() - before.keys()} <= {".lock"}
    ROWS[number] = row(case, lines)


def test_the_documentation_has_them_all():
    if len(ROWS) < len(CASES):
        pytest.skip("the page is compared when all inputs were tested")
    assert len(CASES) >= 150
    assert {case.kind for case in CASES} == set(KINDS)
    expected = page([ROWS[number] for number in range(len(CASES))])
    assert PAGE.read_text(encoding="utf-8") == expected, "run: python -m tests.bad_inputs.called"
