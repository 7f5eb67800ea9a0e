"""What a filter lets through, and what it refuses to be."""

import pytest

from retro_jax.config.filters import Where
from retro_jax.errors import UserError

DATES = ("2019-12-31", "2020", "2020-06-15", "2020-12-31T23:59", "2021-01-01")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"date_from": "2020"}, DATES[1:]),
        ({"date_to": "2020"}, DATES[:4]),
        ({"date_from": "2020-06", "date_to": "2020-06"}, DATES[2:3]),
        ({"date_from": "2020-06-15", "date_to": "2020-12-31"}, DATES[2:4]),
        ({"date_to": "2018"}, ()),
    ],
)
def test_dates_are_compared_as_text_and_an_end_includes_all_that_begins_so(fields, kept):
    where = Where(**fields)
    assert tuple(d for d in DATES if where.matches({"date": d})) == kept
    assert not where.matches({})
    assert not where.matches({"date": None})


def test_licence_and_source_are_members_and_all_fields_must_match():
    where = Where(licence=("MIT", "CC0"), source=("wiki",), date_from="2020")
    good = {"licence": "CC0", "source": "wiki", "date": 2021}  # a JSON line may hold a number
    assert where.matches(good)
    for name in good:
        assert not where.matches({k: v for k, v in good.items() if k != name})
    assert not where.matches(good | {"licence": "CC"})


def test_an_empty_filter_is_false_and_lists_become_tuples():
    assert not Where()
    assert Where().matches({})
    assert Where(source=["a"]) == Where(source=("a",))
    assert len({Where(source=["a"]), Where(source=("a",))}) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"date_from": "May 2020"}, "where.date_from = 'May 2020': must be an ISO date"),
        ({"date_to": "2020-13"}, "where.date_to = '2020-13': must be"),
        ({"date_to": 2020}, "where.date_to = 2020: must be"),
        ({"date_from": "2021", "date_to": "2020"}, "where.date_from = '2021': is after where.date_to"),
        ({"licence": "MIT"}, "where.licence = 'MIT': must be a list"),
        ({"source": ("",)}, r"where.source = \(''.\): must be a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Where(**fields)
