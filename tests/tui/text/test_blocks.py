"""A table of blocks: the same cells in a terminal and on a page."""

from traces.schema.estimate import Estimate
from tui.report.markup import join
from tui.text.blocks import Bar, Table, Term, Value, count, table_lines

TOOK = Estimate(value=0.02, low=0.01, high=0.03, unit="s", of="others")
REGRET = Estimate(value=0.1, low=0.0, high=0.2, unit="s", of="all")
TABLE = Table(
    title="times",
    heads=("what", Term("time", "How long it took."), "regret", ""),
    rows=[("<one>", Value(TOOK, key="a.b"), Value(REGRET, text="tied"), Bar(0.5, "half", 4))],
    apart={"regret": 2},
    indent=2,
)


def test_a_terminal_says_above_what_the_intervals_are_of():
    *head, heads, row = table_lines(TABLE)
    assert head == [
        "times, 90 % intervals of one more run of as many other problems (regret: of all",
        "problems like these)",
    ]
    assert heads.split() == ["what", "time", "regret"]
    assert row == "  <one>  20.0 ms [10.0, 30.0]  tied    ##"
    assert len(table_lines(Table(heads=("a",), rows=[("b",)], bare=True))) == 1


def test_a_page_has_the_meaning_of_the_column_the_key_and_all_digits():
    page = str(join([TABLE, count(None)]))
    assert "Times, with 90 % intervals of one more run" in page and "&lt;one&gt;" in page
    assert 'data-key="a.b" data-value="0.02"' in page and 'aria-label="half 50 %"' in page
    assert page.count("How long it took.") == 2 and "Not measured" in page
